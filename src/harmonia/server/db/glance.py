"""Single queries outside transactions, as cheap as each database allows: for what every call asks first.

They see what was committed last. Nothing is kept between two of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVarTuple

from sqlalchemy import Row, Select, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

Ts = TypeVarTuple("Ts")

_CONNECTIONS = 10


class Glances(Protocol):
    """Asks one kind of database."""

    async def first(self, statement: Select[*Ts], values: Mapping[str, object]) -> Row[*Ts] | None:
        """The first row, if there is one."""

    async def close(self) -> None:
        """Close the connections."""


class SqliteGlances:
    """In one hop to a thread. A session makes a hop for each of its steps, which takes longer than the query."""

    def __init__(self, url: URL, prepare: Callable[[Any, object], None]) -> None:
        """prepare: called with each new connection."""
        self._engine = create_engine(url.set(drivername="sqlite"), isolation_level="AUTOCOMMIT")
        event.listen(self._engine, "connect", prepare)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="glance")

    async def first(self, statement: Select[*Ts], values: Mapping[str, object]) -> Row[*Ts] | None:
        """The first row, if there is one."""

        def ask() -> Row[*Ts] | None:
            with self._engine.connect() as connection:
                return connection.execute(statement, values).first()

        return await asyncio.get_running_loop().run_in_executor(self._thread, ask)

    async def close(self) -> None:
        """Close the connections."""
        self._thread.shutdown()
        self._engine.dispose()


class PostgresGlances:
    """In one round trip: no transaction around it, no ping before it, and a plan that is made once for a connection."""

    def __init__(self, url: URL) -> None:
        self._engine = create_async_engine(
            url,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_use_lifo=True,  # the fewest connections stay warm
            isolation_level="AUTOCOMMIT",
            connect_args={"server_settings": {"plan_cache_mode": "force_generic_plan"}},
        )

    async def first(self, statement: Select[*Ts], values: Mapping[str, object]) -> Row[*Ts] | None:
        """The first row, if there is one."""
        try:
            return await self._first(statement, values)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            # The server closed the connection since its last use; the pool makes new ones now.
            return await self._first(statement, values)

    async def _first(self, statement: Select[*Ts], values: Mapping[str, object]) -> Row[*Ts] | None:
        async with self._engine.connect() as connection:
            return (await connection.execute(statement, values)).first()

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.dispose()
