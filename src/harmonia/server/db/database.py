"""The database behind the control plane: SQLite in a file, or PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVarTuple

from asyncpg import PostgresError
from sqlalchemy import Row as RowOf
from sqlalchemy import Select, event, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from harmonia.errors import InvalidRequestError, UnavailableError
from harmonia.server.db.glance import Glances, PostgresGlances, Rows, SqliteGlances
from harmonia.server.db.usage import Usage, unavailable

Ts = TypeVarTuple("Ts")

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
CONFLICT = "somebody else made or deleted the same at this moment; look it up and try again"
"""What callers hear of an `IntegrityError`: what was checked held until somebody else was faster."""
_BUSY_MS = 10_000
_POOL_SIZE = 20
_ANSWER_S = 5.0


def database_url(text: str) -> URL:
    """The address with the driver that is used; `InvalidRequestError` for other databases."""
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise InvalidRequestError(
            "this is no database address; give sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME",
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
        self.usage = Usage()
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._glances: Glances = (
            SqliteGlances(self.url, _prepare_sqlite) if self.is_sqlite else PostgresGlances(self.url)
        )

    @property
    def is_sqlite(self) -> bool:
        """SQLite has one writer at a time."""
        return self.url.get_backend_name() == "sqlite"

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """A transaction: committed at the end, undone by an exception.

        Those of SQLite come one after the other from their first query on, so that what was checked still holds when it
        is written; `begin` inside `begin` would wait for itself.
        """
        async with self._session("write") as session, session.begin():
            await self._connect(session)
            if self.is_sqlite:
                await session.execute(text("BEGIN IMMEDIATE"))
            yield session

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that changes nothing."""
        async with self._session("read") as session:
            await self._connect(session)
            yield session

    async def first(self, statement: Select[*Ts], values: Mapping[str, object]) -> RowOf[*Ts] | None:
        """The first row of a query that stands alone, much cheaper than a session; None if there is none."""
        with self.usage.counted("glance"):
            try:
                return await self._glances.first(statement, values)
            except (OSError, PostgresError) as error:
                self.usage.failed(error)
                raise unavailable() from error

    async def insert(self, rows: Rows) -> None:
        """Write rows of one or several tables, all or none, much cheaper than a session."""
        with self.usage.counted("write"):
            try:
                await self._glances.insert({table: values for table, values in rows.items() if values})
            except (OSError, PostgresError) as error:
                self.usage.failed(error)
                raise unavailable() from error

    @property
    def shown(self) -> str:
        """The address without its password."""
        return self.url.render_as_string(hide_password=True)

    async def check(self) -> None:
        """Raise `UnavailableError` unless the database answers."""
        try:
            async with asyncio.timeout(_ANSWER_S), self.engine.connect() as connection:
                await connection.execute(select(1))
        except (OSError, SQLAlchemyError, PostgresError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UnavailableError(f"the database {self.shown} does not answer: {reason}") from error

    @asynccontextmanager
    async def _session(self, query_type: str) -> AsyncIterator[AsyncSession]:
        with self.usage.counted(query_type):
            async with self._sessions() as session:
                yield session

    async def _connect(self, session: AsyncSession) -> None:
        """Connect now: the same exceptions mean something else where the caller's code raises them."""
        try:
            await session.connection()
        except (OSError, PostgresError) as error:
            self.usage.failed(error)
            raise unavailable() from error

    async def close(self) -> None:
        """Close every connection."""
        await self._glances.close()
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
