"""Files on their way to the server."""

from __future__ import annotations

import fnmatch
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from harmonia.errors import InvalidRequestError

_MIB = 1024**2
_GIB = 1024**3
CHUNKED_ABOVE = 5 * _MIB
"""Bytes; a larger file is uploaded in parts."""
MAX_PARTS = 10_000
_PART_SIZES = ((500 * _MIB, 5 * _MIB), (10 * _GIB, 10 * _MIB), (50 * _GIB, 50 * _MIB))
_LARGEST_PART = 100 * _MIB
_ALWAYS_LEFT_OUT = (".git/", "__pycache__/", "*.pyc")
_IGNORE_FILES = (".zipignore", ".gitignore")


class FilePart(NamedTuple):
    """A file in a multipart request: its name, its content and its media type."""

    name: str
    content: bytes
    media_type: str


@dataclass(frozen=True)
class UploadProgress:
    """How far an upload is; `session_id` continues one that was cut off, None until the server named it."""

    sent_bytes: int
    total_bytes: int
    session_id: str | None = None


def existing_file(path: str | Path) -> Path:
    """The path, if there is a file; InvalidRequestError else."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise InvalidRequestError(f"there is no file {str(path)!r}", field="path")
    return file


def part_size_of(size: int) -> int:
    """Bytes of one part of a file of `size` bytes; InvalidRequestError for one that is too large."""
    part = next((part for limit, part in _PART_SIZES if size < limit), _LARGEST_PART)
    part = max(part, -(-size // MAX_PARTS))
    if part > _LARGEST_PART:
        limit = MAX_PARTS * _LARGEST_PART
        raise InvalidRequestError(f"{size} bytes are more than the {limit} that can be uploaded; split the file")
    return part


def read_parts(path: Path, size: int, skip: frozenset[int]) -> Iterator[tuple[int, bytes]]:
    """Numbers, from 1, and content of the parts that are not to be skipped."""
    with path.open("rb") as file:
        for number in range(1, -(-path.stat().st_size // size) + 1):
            if number not in skip:
                file.seek((number - 1) * size)
                yield number, file.read(size)


@contextmanager
def arriving(to: Path) -> Iterator[BinaryIO]:
    """A file to write to that is there under its name once it is whole."""
    unfinished = to.with_name(f"{to.name}.part")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(to)
    finally:
        unfinished.unlink(missing_ok=True)


def slug(name: str) -> str:
    """A key made of a name: lower case, with dashes."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def default_recipe_key(path: str | Path) -> str:
    """The key of a recipe that is given none: the name of its file or folder."""
    file = Path(path).expanduser().absolute()
    return slug(file.stem if file.is_file() else file.name)


def pack_recipe(path: str | Path, entrypoint: str | None = None) -> FilePart:
    """A recipe as it is uploaded: a .py file as it is, a folder zipped.

    What `.zipignore`, else `.gitignore`, of the folder names is left out. InvalidRequestError for anything else, and
    for a folder without its entry point, `main.py` unless given.
    """
    source = Path(path).expanduser().absolute()
    if source.is_file() and source.suffix == ".py":
        return FilePart(source.name, source.read_bytes(), "text/x-python")
    if not source.is_dir():
        problem = "is no .py file" if source.exists() else "does not exist"
        raise InvalidRequestError(f"a recipe is a .py file or a folder; {str(path)!r} {problem}", field="path")
    if not (source / (entrypoint or "main.py")).is_file():
        raise InvalidRequestError(f"{source} has no {entrypoint or 'main.py'}; name its entry point", field="path")
    return FilePart(f"{source.name}.zip", _zipped(source), "application/zip")


def _zipped(folder: Path) -> bytes:
    patterns = [*_ALWAYS_LEFT_OUT, *_patterns(folder)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and not file.is_symlink() and not _is_left_out(name, patterns):
                archive.write(file, name)
    return buffer.getvalue()


def _patterns(folder: Path) -> list[str]:
    for name in _IGNORE_FILES:
        if (folder / name).is_file():
            lines = (line.strip() for line in (folder / name).read_text(encoding="utf-8").splitlines())
            return [line for line in lines if line and not line.startswith("#")]
    return []


def _is_left_out(name: str, patterns: list[str]) -> bool:
    """As git does it, the last pattern that fits decides; `!` keeps what an earlier one leaves out."""
    left_out = False
    for pattern in patterns:
        if _fits(name, pattern.removeprefix("!")):
            left_out = not pattern.startswith("!")
    return left_out


def _fits(name: str, pattern: str) -> bool:
    """Whether the file or one of the folders it is in has that name; a slash inside starts at the root."""
    folders_only, pattern = pattern.endswith("/"), pattern.rstrip("/")
    is_anchored, pattern = "/" in pattern, pattern.lstrip("/")
    steps = name.split("/")
    for depth in range(1, len(steps) + (not folders_only)):
        shown = "/".join(steps[:depth]) if is_anchored else steps[depth - 1]
        if fnmatch.fnmatchcase(shown, pattern):
            return True
    return False
