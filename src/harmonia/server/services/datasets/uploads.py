"""Uploads in parts: begun, filled in any order, then taken as one file, or dropped when nobody goes on."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.config.control import ControlConfig
from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.log import get_logger
from harmonia.server.db.base import MAX_KEY, now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.uploads import UploadSession
from harmonia.server.services.access import Caller, require_somewhere
from harmonia.server.services.datasets.unfinished import Accounts, Unfinished, too_much
from harmonia.server.services.files import Files, new_name, part_name

log = get_logger(__name__)

MAX_PARTS = 10_000
MAX_PART_BYTES = 100 << 20
_SWEEP_S = 600.0
_SHOWN_PARTS = 10


class PartTooLargeError(InvalidRequestError):
    """A part exceeds what one part may hold."""

    code = "part_too_large"


@dataclass(frozen=True, slots=True)
class NewUpload:
    """What a client says of a file before its parts come."""

    total_parts: int
    content_type: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UploadStatus:
    """How far an upload is: the numbers of the parts that are there, and how many there will be."""

    completed: list[int]
    total: int


class Uploads:
    """Sessions of the users to whom they belong; for others they do not exist."""

    def __init__(self, config: ControlConfig, database: Database, files: Files) -> None:
        self._database = database
        self._files = files
        self._settings = config.files
        self._accounts = Accounts(config.files, database, files)
        self._lifetime_ms = round(config.files.upload_expiry_hours * 3_600_000)
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to drop what nobody goes on with."""
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def close(self) -> None:
        """End that."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------- for clients

    async def begin(self, caller: Caller, new: NewUpload) -> UploadSession:
        """A session of the caller, who may make data sets or run jobs somewhere: both end here."""
        if not 1 <= new.total_parts <= MAX_PARTS:
            raise InvalidRequestError(
                f"total_parts_count is {new.total_parts}; give 1 to {MAX_PARTS}, with at most {MAX_PART_BYTES} bytes "
                "in each part",
                field="total_parts_count",
            )
        if new.content_type is not None and len(new.content_type) > MAX_KEY:
            raise InvalidRequestError(
                f"content_type has {len(new.content_type)} characters; give at most {MAX_KEY}", field="content_type"
            )
        row = UploadSession(
            user_id=caller.user_id,
            total_parts=new.total_parts,
            content_type=new.content_type,
            details=new.details,
            expires_at=now_ms() + self._lifetime_ms,
        )
        async with self._database.begin() as session:
            await require_somewhere(session, caller, "dataset:create", "project:adapt")
            await self._require_few(session, caller)
            session.add(row)
        return row

    async def put_part(self, caller: Caller, session_id: str, number: int, chunks: AsyncIterable[bytes]) -> int:
        """Write a part, or write it anew; parts count from 1 and come in any order. Returns its bytes."""
        row = await self._open(caller, session_id)
        if not 1 <= number <= row.total_parts:
            raise InvalidRequestError(
                f"part_number is {number}; the parts of this upload are 1 to {row.total_parts}", field="part_number"
            )
        unfinished = await self._accounts.of(caller.user_id)
        counted = _Counted(number, chunks, unfinished)
        try:
            await self._files.put(part_name(row.id, number), counted)
        except BaseException:
            unfinished.forget(counted.size)
            raise
        unfinished.keep(row.id, number, counted.size)
        async with self._database.begin() as session:
            alive = await session.execute(
                update(UploadSession)
                .where(UploadSession.id == row.id, UploadSession.file.is_(None))
                .values(expires_at=now_ms() + self._lifetime_ms)
                .returning(UploadSession.id)
            )
            lost = alive.first() is None
        if lost:  # aborted, expired or taken while the part came
            await self._remove_if_gone(row)
            raise _not_found(session_id)
        return counted.size

    async def status(self, caller: Caller, session_id: str) -> UploadStatus:
        """Which parts are there."""
        row = await self._open(caller, session_id)
        return UploadStatus(list(await self._files.parts(row.id)), row.total_parts)

    async def abort(self, caller: Caller, session_id: str) -> None:
        """Forget the session and its parts."""
        row = await self._open(caller, session_id)
        async with self._database.begin() as session:
            await session.execute(delete(UploadSession).where(UploadSession.id == row.id, UploadSession.file.is_(None)))
        await self._remove_if_gone(row)

    # ----------------------------------------------------------------------------------------- for other services

    async def take(self, caller: Caller, session_id: str) -> str:
        """The whole file's name in the store, in one go; from then on it belongs to whoever took it."""
        await self.require_complete(caller, session_id)
        async with self._database.begin() as session:
            row = await self.claim(session, caller, session_id)
        assert row.file is not None
        await self.assemble(row.id)
        return row.file

    async def require_complete(self, caller: Caller, session_id: str) -> None:
        """InvalidRequestError names the parts that are missing."""
        status = await self.status(caller, session_id)
        missing = sorted(set(range(1, status.total + 1)) - set(status.completed))
        if missing:
            shown = ", ".join(map(str, missing[:_SHOWN_PARTS])) + (", ..." * (len(missing) > _SHOWN_PARTS))
            raise InvalidRequestError(
                f"{len(missing)} of {status.total} parts are missing: {shown}; upload them first", field="session_id"
            )

    async def claim(self, session: AsyncSession, caller: Caller, session_id: str) -> UploadSession:
        """Reserve a complete upload, in the transaction of what will use it: `row.file` is the name of the file that
        `assemble(row.id)` makes.
        """
        query = (
            update(UploadSession)
            .where(
                UploadSession.id == _uuid(session_id),
                UploadSession.user_id == caller.user_id,
                UploadSession.file.is_(None),
            )
            .values(file=new_name(), expires_at=now_ms() + self._lifetime_ms)
            .returning(UploadSession)
        )
        row: UploadSession | None = (await session.execute(query)).scalar_one_or_none()
        if row is None:
            raise _not_found(session_id)
        return row

    async def assemble(self, session_id: uuid.UUID) -> None:
        """Make the file of a claimed upload and drop its parts; nothing happens if that was done before."""
        async with self._database.read() as session:
            row = await session.get(UploadSession, session_id)
        if row is None:
            return
        assert row.file is not None, "claim it first"
        sizes = await self._files.parts(row.id)
        await self._files.put(row.file, self._whole(row), sum(sizes.values()))
        async with self._database.begin() as session:
            await session.execute(delete(UploadSession).where(UploadSession.id == row.id))
        await self._accounts.drop(row.user_id, row.id)

    async def sweep(self) -> int:
        """Drop what has expired; returns how many uploads that were."""
        async with self._database.begin() as session:
            told = (UploadSession.id, UploadSession.user_id, UploadSession.file)
            query = delete(UploadSession).where(UploadSession.expires_at < now_ms()).returning(*told)
            gone = (await session.execute(query)).all()
        for row in gone:
            await self._accounts.drop(row.user_id, row.id)
            if row.file is not None:  # whoever claimed it never came back for it
                await self._files.delete(row.file)
        return len(gone)

    # ---------------------------------------------------------------------------------------------------- its own

    async def _open(self, caller: Caller, session_id: str) -> UploadSession:
        async with self._database.read() as session:
            query = select(UploadSession).where(
                UploadSession.id == _uuid(session_id),
                UploadSession.user_id == caller.user_id,
                UploadSession.file.is_(None),
                UploadSession.expires_at >= now_ms(),
            )
            row: UploadSession | None = (await session.execute(query)).scalar_one_or_none()
        if row is None:
            raise _not_found(session_id)
        return row

    async def _require_few(self, session: AsyncSession, caller: Caller) -> None:
        own = select(func.count()).where(UploadSession.user_id == caller.user_id, UploadSession.expires_at >= now_ms())
        most = self._settings.max_unfinished_uploads
        if (await session.execute(own)).scalar_one() >= most:
            raise too_much(self._settings, f"more than {most} files", "ADAPTIVE_FILES__MAX_UNFINISHED_UPLOADS")

    async def _remove_if_gone(self, row: UploadSession) -> None:
        """Parts outlive their session only if a claim keeps it."""
        async with self._database.read() as session:
            is_gone = await session.get(UploadSession, row.id) is None
        if is_gone:
            await self._accounts.drop(row.user_id, row.id)

    async def _whole(self, row: UploadSession) -> AsyncIterator[bytes]:
        for number in range(1, row.total_parts + 1):
            async for block in self._files.get(part_name(row.id, number)):
                yield block

    async def _sweep_forever(self) -> None:
        while True:
            try:
                gone = await self.sweep()
                if gone:
                    log.info("dropped %d uploads that nobody went on with", gone)
            except Exception:
                log.exception("dropping expired uploads failed; it is tried again in %g s", _SWEEP_S)
            await asyncio.sleep(_SWEEP_S)


class _Counted:
    """Chunks of a part, counted as they pass; `PartTooLargeError` beyond the limit, `TooMuchUnfinishedError` beyond
    that of the account, and an empty part is refused."""

    def __init__(self, number: int, chunks: AsyncIterable[bytes], unfinished: Unfinished) -> None:
        self.size = 0
        self._unfinished = unfinished
        self._number = number
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self.size += len(chunk)
            self._unfinished.count(len(chunk))
            if self.size > MAX_PART_BYTES:
                raise PartTooLargeError(
                    f"part {self._number} exceeds {MAX_PART_BYTES} bytes; cut the file into more parts", field="body"
                )
            if chunk:
                yield chunk
        if not self.size:
            raise InvalidRequestError(f"part {self._number} is empty; send its bytes as the body", field="body")


def _uuid(session_id: str) -> uuid.UUID:
    with contextlib.suppress(ValueError):
        return uuid.UUID(session_id)
    raise _not_found(session_id)


def _not_found(session_id: str) -> EntityNotFoundError:
    return EntityNotFoundError(
        f"Upload session {session_id!r:.80} does not exist: it was aborted, has expired, or its file was used already",
        entity="upload_session",
    )
