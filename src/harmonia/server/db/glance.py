"""What every inference call needs of the database, as cheap as each kind allows, without sessions.

Single queries outside transactions see what was committed last; nothing is kept between two of them. Rows of several
tables are written all or none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVarTuple

from sqlalchemy import Row, Select, Table, create_engine, event, insert
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from harmonia.server.db.base import Base

Ts = TypeVarTuple("Ts")
Rows = Mapping[type[Base], Sequence[Mapping[str, object]]]
"""By table, in the order in which they refer to each other."""

_CONNECTIONS = 10


def _table(entity: type[Base]) -> Table:
    table = entity.__table__
    assert isinstance(table, Table)
    return table


class Glances(Protocol):
    """Asks one kind of database."""

    async def first(self, statement: Select[*Ts], values: Mapping[str, object]) -> Row[*Ts] | None:
        """The first row, if there is one."""

    async def insert(self, rows: Rows) -> None:
        """Write rows in one transaction."""

    async def close(self) -> None:
        """Close the connections."""


class SqliteGlances:
    """In one hop to a thread. A session makes a hop for each of its steps, which takes longer than the query.

    Writing has a thread of its own, since it waits for other writers.
    """

    def __init__(self, url: URL, prepare: Callable[[Any, object], None]) -> None:
        """prepare: called with each new connection."""
        self._engine = create_engine(url.set(drivername="sqlite"), isolation_level="AUTOCOMMIT")
        event.listen(self._engine, "connect", prepare)
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="glance")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="insert")

    async def first(self, statement: Select[*Ts], values: Mapping[str, object]) -> Row[*Ts] | None:
        """The first row, if there is one."""

        def ask() -> Row[*Ts] | None:
            with self._engine.connect() as connection:
                return connection.execute(statement, values).first()

        return await asyncio.get_running_loop().run_in_executor(self._reading, ask)

    async def insert(self, rows: Rows) -> None:
        """Write rows in one transaction."""

        def write() -> None:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    for table, values in rows.items():
                        connection.execute(insert(_table(table)), values)
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    driver = connection.connection.driver_connection
                    if driver is not None and driver.in_transaction:  # a full disk has ended it already
                        connection.exec_driver_sql("ROLLBACK")
                    raise

        await asyncio.get_running_loop().run_in_executor(self._writing, write)

    async def close(self) -> None:
        """Close the connections."""
        self._reading.shutdown()
        self._writing.shutdown()
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

    async def insert(self, rows: Rows) -> None:
        """Write rows in one transaction."""
        async with self._engine.connect() as connection:
            if len(rows) > 1:  # what goes to one table is a transaction of its own, in one round trip
                await connection.execution_options(isolation_level="READ COMMITTED")
            async with connection.begin():
                for table, values in rows.items():
                    await connection.execute(insert(_table(table)), values)

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.dispose()
