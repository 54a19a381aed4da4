"""How much each account has lying in uploads that nobody has taken yet."""

from __future__ import annotations

import asyncio
import uuid

from sqlalchemy import select

from harmonia.config.control import Files as Settings
from harmonia.errors import InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.uploads import UploadSession
from harmonia.server.services.files import Files


class TooMuchUnfinishedError(InvalidRequestError):
    """An account has more lying in unfinished uploads than it may."""

    code = "too_much_unfinished"


class Unfinished:
    """The parts of one account's uploads. `begin` a part, `count` its bytes as they come, then `end` it."""

    def __init__(self, settings: Settings, parts: dict[uuid.UUID, dict[int, int]]) -> None:
        """parts: the bytes of those that are there, by upload and number."""
        self._settings = settings
        self._parts = parts
        self._bytes = sum(sum(sizes.values()) for sizes in parts.values())

    def count(self, num_bytes: int) -> None:
        """Of a part that is on its way; `TooMuchUnfinishedError` if there is no room for them."""
        self._bytes += num_bytes
        most = self._settings.max_unfinished_bytes
        if self._bytes > most:
            raise too_much(self._settings, f"more than {most} bytes", "ADAPTIVE_FILES__MAX_UNFINISHED_BYTES")

    def forget(self, num_bytes: int) -> None:
        """Bytes that were counted and did not stay."""
        self._bytes -= num_bytes

    def keep(self, upload_id: uuid.UUID, number: int, size: int) -> None:
        """A part that was counted is there, in place of what was there before it."""
        sizes = self._parts.setdefault(upload_id, {})
        self._bytes -= sizes.get(number, 0)
        sizes[number] = size

    def drop(self, upload_id: uuid.UUID) -> None:
        """The parts of an upload are gone."""
        self._bytes -= sum(self._parts.pop(upload_id, {}).values())


class Accounts:
    """What is unfinished, by account: read once of each, since no other server changes it."""

    def __init__(self, settings: Settings, database: Database, files: Files) -> None:
        self._settings = settings
        self._database = database
        self._files = files
        self._known: dict[uuid.UUID, Unfinished] = {}
        self._reading = asyncio.Lock()

    async def of(self, user_id: uuid.UUID) -> Unfinished:
        """What an account has; after this it must be told of all that changes."""
        async with self._reading:
            if user_id not in self._known:
                async with self._database.read() as session:
                    query = select(UploadSession.id).where(UploadSession.user_id == user_id)
                    ids = (await session.execute(query)).scalars().all()
                parts = {upload_id: dict(await self._files.parts(upload_id)) for upload_id in ids}
                self._known[user_id] = Unfinished(self._settings, parts)
            return self._known[user_id]

    async def drop(self, user_id: uuid.UUID, upload_id: uuid.UUID) -> None:
        """Remove the parts of an upload."""
        await self._files.delete_parts(upload_id)
        if user_id in self._known:
            self._known[user_id].drop(upload_id)


def too_much(settings: Settings, what: str, setting: str) -> TooMuchUnfinishedError:
    """The refusal, with every way out of it."""
    return TooMuchUnfinishedError(
        f"your account would have {what} in unfinished uploads; finish them, abort those that you gave up (DELETE "
        f"/api/v1/upload/abort), or wait: each is dropped {settings.upload_expiry_hours:g} h after its last part. Who "
        f"runs the server may raise {setting}",
    )
