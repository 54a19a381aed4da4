"""Files of the control plane: in a folder, or in an object store.

A file is known by a name that this module makes, never by one that a user gave, so that no name leads elsewhere.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store, from_url

from harmonia.config.control import ControlConfig
from harmonia.errors import InvalidRequestError, UnavailableError

BLOCK_BYTES = 1 << 20
"""What a file is read in, at least, except for its last block."""

_PIECE_BYTES = 8 << 20  # of a file on its way to an object store
_PIECES_AT_ONCE = 3
_MOST_PIECES = 9_000  # object stores take 10,000
_TIMEOUT = timedelta(hours=1)  # of one transfer to or from an object store
_NAME = re.compile(r"data/[0-9a-f]{2}/[0-9a-f]{32}|uploads/[0-9a-f]{32}/[1-9][0-9]{0,4}")
_CLOUDS = ("s3", "gs", "az")


def new_name() -> str:
    """The name of a file that is yet to be written."""
    text = uuid.uuid4().hex
    return f"data/{text[:2]}/{text}"


def part_name(session_id: uuid.UUID, number: int) -> str:
    """The name of one part of a file that is being uploaded; parts count from 1."""
    return f"{_folder(session_id)}/{number}"


class Files:
    """Reads and writes files by name. Methods raise `UnavailableError` when the store cannot be reached."""

    def __init__(self, config: ControlConfig) -> None:
        self._store = _open(config)

    async def put(self, name: str, chunks: AsyncIterable[bytes], expected_bytes: int = 0) -> None:
        """Write a file as its chunks come, in bounded memory.

        It is there as a whole or, after an exception, as it was. expected_bytes: a guess, needed beyond 70 GB.
        """
        piece = max(_PIECE_BYTES, -(-expected_bytes // _MOST_PIECES))
        with _told():
            await obstore.put_async(
                self._store, _checked(name), aiter(chunks), chunk_size=piece, max_concurrency=_PIECES_AT_ONCE
            )

    async def get(self, name: str) -> AsyncIterator[bytes]:
        """The blocks of a file; FileNotFoundError if there is none."""
        with _told():
            found = await obstore.get_async(self._store, _checked(name))
            async for block in found.stream(BLOCK_BYTES):
                yield bytes(block)

    async def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        with _told():
            try:
                return (await obstore.head_async(self._store, _checked(name)))["size"]
            except FileNotFoundError:
                return None

    async def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return await self.size(name) is not None

    async def delete(self, *names: str) -> None:
        """Remove files; those that are gone already do not matter."""
        with _told():
            for name in names:
                try:
                    await obstore.delete_async(self._store, _checked(name))
                except FileNotFoundError:
                    continue

    @asynccontextmanager
    async def local(self, name: str) -> AsyncIterator[Path]:
        """A copy on this machine, for what needs a path; it is gone afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            with path.open("wb") as file:
                async for block in self.get(name):
                    await asyncio.to_thread(file.write, block)
            yield path

    # --------------------------------------------------------------------------------------------- parts of uploads

    async def parts(self, session_id: uuid.UUID) -> dict[int, int]:
        """The bytes of each part that is there, by number."""
        found: dict[int, int] = {}
        with _told():
            async for batch in obstore.list(self._store, _folder(session_id)):
                found |= {int(meta["path"].rpartition("/")[2]): meta["size"] for meta in batch}
        return dict(sorted(found.items()))

    async def delete_parts(self, session_id: uuid.UUID) -> None:
        """Remove every part."""
        await self.delete(*(part_name(session_id, number) for number in await self.parts(session_id)))


def _folder(session_id: uuid.UUID) -> str:
    return f"uploads/{session_id.hex}"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name that this store made")
    return name


@contextmanager
def _told() -> Iterator[None]:
    """Says what failed in the first line of what the store tells."""
    try:
        yield
    except BaseError as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnavailableError(f"the store of files does not answer: {said}") from error


def _open(config: ControlConfig) -> ObjectStore:
    """The store at `ADAPTIVE_FILES__URL`; credentials of clouds come from their own environment variables."""
    url = config.files.url
    if url is None:
        return _local(config.folder / "files")
    scheme, _, rest = url.partition("://")
    if scheme == "file" and rest.startswith("/"):
        return _local(Path(rest))
    if scheme not in _CLOUDS or not rest:
        raise InvalidRequestError(
            f"{url!r} is no place for files; give s3://, gs:// or az:// with a bucket, or file:///PATH",
            field="ADAPTIVE_FILES__URL",
        )
    try:
        store = from_url(url, client_options={"timeout": _TIMEOUT})
    except (BaseError, ValueError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidRequestError(f"cannot use {url!r} for files: {said}", field="ADAPTIVE_FILES__URL") from error
    assert isinstance(store, S3Store | GCSStore | AzureStore)
    return store


def _local(folder: Path) -> LocalStore:
    try:
        return LocalStore(folder, mkdir=True, automatic_cleanup=True)
    except (BaseError, OSError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidRequestError(
            f"cannot keep files in {folder}: {said}; make it writable or set ADAPTIVE_FILES__URL",
            field="ADAPTIVE_FILES__URL",
        ) from error
