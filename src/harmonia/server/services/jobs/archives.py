"""The files of a recipe, as they are uploaded and kept. Nothing of them is ever run here."""

from __future__ import annotations

import hashlib
import io
import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from harmonia.errors import InvalidRequestError

MAX_UPLOAD_BYTES = 16 << 20
"""Largest file or zip of a recipe."""
MAX_CONTENT_BYTES = 64 << 20
"""All files of a recipe together, unpacked."""
MAX_FILES = 1000
"""Files of a recipe."""
_MAX_PATH_BYTES = 255
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    OSError,
    ValueError,
)
"""What reading a broken, encrypted or exotic zip raises."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same for every file: equal files make equal archives."""

Files = Mapping[str, bytes]
"""Contents by path, relative with `/`."""


def read_upload(name: str, content: bytes) -> Files:
    """The files of an upload: a `.py` file or a zip of a folder.

    `InvalidRequestError` for what is neither, is too large, or leads out of its folder.
    """
    if len(content) > MAX_UPLOAD_BYTES:
        raise InvalidRequestError(
            f"{name!r} has {len(content)} bytes, a recipe at most {MAX_UPLOAD_BYTES}; leave data and models out of it",
            field="file",
        )
    if zipfile.is_zipfile(io.BytesIO(content)):
        return _read_zip(name, content)
    file_name = _checked_path(PurePosixPath(name.replace("\\", "/")).name)
    if not file_name.endswith(".py"):
        raise InvalidRequestError(f"{name!r} is neither a .py file nor a zip of a folder", field="file")
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{name!r} is no Python file: {error}", field="file") from error
    return {file_name: content}


def patched(files: Files, uploads: Iterable[tuple[str, bytes]], gone: Iterable[str]) -> Files:
    """Files with others added or in their place, by path, and without those that are `gone`.

    `InvalidRequestError` for paths that lead out of the folder or that are not there to be removed, and for too much.
    """
    gone = set(gone)
    missing = sorted(gone - files.keys())
    if missing:
        raise InvalidRequestError(
            f"there is no file {missing[0]!r} to delete; there is {', '.join(sorted(files))}", field="filesToDelete"
        )
    kept = {path: content for path, content in files.items() if path not in gone}
    kept |= {_checked_path(name): content for name, content in uploads}
    size = sum(map(len, kept.values()))
    if len(kept) > MAX_FILES or size > MAX_CONTENT_BYTES:
        raise InvalidRequestError(
            f"the recipe would have {len(kept)} files of {size} bytes together, at most {MAX_FILES} of "
            f"{MAX_CONTENT_BYTES} may be",
            field="files",
        )
    _require_folder(kept, "the recipe")
    return kept


def pack(files: Files) -> bytes:
    """A zip: the same bytes for the same files."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files):
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), files[path], zipfile.ZIP_DEFLATED)
    return target.getvalue()


def unpack(archive: bytes) -> Files:
    """The files of a zip that `pack` made."""
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        return {info.filename: packed.read(info) for info in packed.infolist()}


def write_files(files: Files, folder: Path) -> None:
    """Write them below a folder."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def content_hash(files: Files) -> str:
    """SHA-256 over paths and contents, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(files):
        for part in (path.encode(), files[path]):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _read_zip(name: str, content: bytes) -> Files:
    files: dict[str, bytes] = {}
    left = MAX_CONTENT_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            if len(infos) > MAX_FILES:
                raise InvalidRequestError(f"{name!r} has {len(infos)} files, at most {MAX_FILES} may be", field="file")
            for info in infos:
                _require_file(info)
                path = _checked_path(info.filename)
                if path in files:
                    raise InvalidRequestError(f"{name!r} has two files {path!r}", field="file")
                with archive.open(info) as packed:
                    files[path] = packed.read(left + 1)  # what the zip says of sizes need not be true
                left -= len(files[path])
                if left < 0:
                    raise InvalidRequestError(
                        f"the files in {name!r} have more than {MAX_CONTENT_BYTES} bytes together", field="file"
                    )
    except _UNREADABLE as error:
        raise InvalidRequestError(f"{name!r} is no zip that can be read: {error}", field="file") from error
    _require_folder(files, repr(name))
    return files


def _require_folder(files: Files, name: str) -> None:
    """That the files can stand in one folder."""
    if not files:
        raise InvalidRequestError(f"{name} is empty", field="file")
    both = files.keys() & {str(folder) for path in files for folder in PurePosixPath(path).parents}
    if both:
        raise InvalidRequestError(f"{min(both)!r} in {name} is a file and a folder; rename one", field="file")


def _require_file(info: zipfile.ZipInfo) -> None:
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise InvalidRequestError(f"{info.filename!r} is a link or device; a recipe holds files only", field="file")


def _checked_path(path: str) -> str:
    is_inside = not any(part in ("", ".", "..") for part in path.split("/")) and path.isprintable()
    if not is_inside or "\\" in path or ":" in path or len(path.encode()) > _MAX_PATH_BYTES:
        raise InvalidRequestError(
            f"{path[:_MAX_PATH_BYTES]!r} is no path inside the recipe's folder of at most {_MAX_PATH_BYTES} bytes; "
            "rename it",
            field="file",
        )
    return path
