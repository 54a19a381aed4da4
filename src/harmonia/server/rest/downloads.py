"""What every download says of itself, so that a browser keeps it as a file and never runs it as a page."""

from __future__ import annotations

from urllib.parse import quote


def download_headers(file_name: str, size: int | None = None) -> dict[str, str]:
    """Headers of a file to be kept under a name, whatever signs that name has. size: bytes, if they are known."""
    headers = {
        "content-disposition": f"attachment; filename*=utf-8''{quote(file_name.replace('/', '-'), safe='')}",
        "x-content-type-options": "nosniff",
    }
    return headers if size is None else {**headers, "content-length": str(size)}
