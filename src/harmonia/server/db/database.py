"""The database behind the control plane: SQLite in a file, or PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from harmonia.errors import InvalidRequestError

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
_BUSY_MS = 10_000
_POOL_SIZE = 20


def database_url(text: str) -> URL:
    """The address with the driver that is used; `InvalidRequestError` for other databases."""
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise InvalidRequestError(
            f"{text!r} is no database address; give sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME",
            field="ADAPTIVE_DB__URL",
        ) from error
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise InvalidRequestError(
            f"databases of the kind {url.drivername!r} are not supported; give sqlite:///PATH or postgresql://...",
            field="ADAPTIVE_DB__URL",
        )
    return url.set(drivername=driver)


class Database:
    """Connections, handed out as transactions."""

    def __init__(self, url: str | URL) -> None:
        self.url = database_url(url) if isinstance(url, str) else url
        self.engine = _engine(self.url)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @property
    def is_sqlite(self) -> bool:
        """SQLite has one writer at a time."""
        return self.url.get_backend_name() == "sqlite"

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """A transaction: committed at the end, undone by an exception."""
        async with self._sessions() as session, session.begin():
            yield session

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that changes nothing."""
        async with self._sessions() as session:
            yield session

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


def _engine(url: URL) -> AsyncEngine:
    if url.get_backend_name() != "sqlite":
        return create_async_engine(url, pool_size=_POOL_SIZE, max_overflow=_POOL_SIZE, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={_BUSY_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
