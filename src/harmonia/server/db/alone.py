"""One server for each database: two would both believe that every worker, job and interaction is theirs.

What keeps the second out belongs to the process, so that a crash leaves nothing locked: a lock on a file beside
SQLite's database, an advisory lock of a connection to PostgreSQL.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from asyncpg import PostgresError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger
from harmonia.server.db.database import Database

log = get_logger(__name__)

_LOCK = 0x6861726D6F6E7900
"""Of PostgreSQL's advisory locks, which are a database's own."""
_TRY = text(f"SELECT pg_try_advisory_lock({_LOCK})")
_HOLDER = text(
    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted "
    f"AND classid = {_LOCK >> 32} AND objid = {_LOCK & 0xFFFFFFFF} AND objsubid = 1 "
    "AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_LONGEST_NAME = 63
_KEEPALIVE = {"tcp_keepalives_idle": "20", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
"""Else PostgreSQL would notice only after hours that the machine of a server is gone."""
_PATIENCE_S = 3.0
"""So long PostgreSQL may take to notice that a server that was killed is gone."""
_AGAIN_S = 0.2

Lost = Callable[[str], None]
_OUTAGES = (OSError, SQLAlchemyError, PostgresError)


def this_process() -> str:
    """How the holder of a lock is named to others."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def sole_holder(lock: Path, what: str, remedy: str) -> Iterator[None]:
    """Holds a file; raises `InvalidRequestError`, which names the process, while another does.

    what: what the file stands for. remedy: what to do about it.
    """
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _in_use(what, file.read(), remedy) from error
        file.truncate(0)
        file.write(this_process())
        file.flush()
        yield


@asynccontextmanager
async def sole_server(database: Database, remedy: str, lost: Lost) -> AsyncIterator[None]:
    """Holds a database; raises `InvalidRequestError`, which names the server, while another does.

    remedy: what to do about it. lost: called, with the reason, should another get hold of the database while the
    connection to it is interrupted.
    """
    what = f"the database {database.shown}"
    path = database.url.database
    if database.is_sqlite:
        if not path or path == ":memory:":
            yield  # nobody else sees it
            return
        with sole_holder(Path(f"{path}.lock"), what, remedy):
            yield
        return
    hold = _PostgresLock(database, lost)
    if not await hold.taken(_PATIENCE_S):
        holder = await hold.holder()
        await hold.release()
        raise _in_use(what, holder, remedy)
    try:
        yield
    finally:
        await hold.release()


def _in_use(what: str, holder: str, remedy: str) -> InvalidRequestError:
    named = holder.strip() or "another process"
    return InvalidRequestError(f"a server runs with {what} already: {named}; {remedy}", field="db")


class _PostgresLock:
    """A lock that lives as long as a connection, which is made again when it breaks."""

    def __init__(self, database: Database, lost: Lost) -> None:
        settings = {"application_name": f"harmonia, {this_process()}"[:_LONGEST_NAME], **_KEEPALIVE}
        self._engine = create_async_engine(
            database.url,
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"server_settings": settings},
        )
        self._lost = lost
        self._connection: AsyncConnection | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def taken(self, patience_s: float) -> bool:
        """Whether it is ours now."""
        self._connection = await self._engine.connect()
        raw = await self._connection.get_raw_connection()
        raw.driver_connection.add_termination_listener(self._on_end)  # type: ignore[union-attr]
        deadline_s = asyncio.get_running_loop().time() + patience_s
        while not (await self._connection.execute(_TRY)).scalar_one():
            if asyncio.get_running_loop().time() > deadline_s:
                return False
            await asyncio.sleep(_AGAIN_S)
        return True

    async def holder(self) -> str:
        """Who has it, as that process named itself."""
        assert self._connection is not None
        return str((await self._connection.execute(_HOLDER)).scalar() or "").removeprefix("harmonia, ")

    async def release(self) -> None:
        """Let others have it."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        self._lost = _nobody
        await self._drop()
        await self._engine.dispose()

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*_OUTAGES):
                await connection.close()

    def _on_end(self, _: object) -> None:
        if self._connection is not None and (self._renewing is None or self._renewing.done()):
            log.error("the connection that holds the database is gone; taking it again")
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        while True:
            await self._drop()
            try:
                if await self.taken(_PATIENCE_S):
                    return
                holder = await self.holder()
            except _OUTAGES as error:
                log.warning("the database does not answer yet: %s", str(error).partition("\n")[0])
                await asyncio.sleep(_AGAIN_S)
                continue
            self._lost(f"another server has taken the database: {holder}")
            return


def _nobody(_: str) -> None: ...
