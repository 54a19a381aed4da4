"""The history of the tables leads from nothing to what the code declares, and back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from harmonia.errors import InvalidRequestError, UnavailableError
from harmonia.server.db import migrate
from harmonia.server.db.database import Database
from harmonia.server.db.tables import METADATA
from harmonia.server.services.access import Access
from harmonia.server.services.people.people import People
from tests.integration.control.conftest import ADMIN, on_both


async def tables_of(database: Database) -> set[str]:
    async with database.engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


async def differences(database: Database) -> list[object]:
    """What a database lacks of the tables that the code declares, or has beyond them."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(
            lambda sync: list(compare_metadata(MigrationContext.configure(sync), METADATA))
        )


@on_both
async def test_up_down_and_up_again(database_address: str) -> None:
    database = Database(database_address)
    await migrate.upgrade(database)
    assert await tables_of(database) == {*METADATA.tables, "alembic_version"}
    assert await differences(database) == []
    await migrate.downgrade(database)
    assert await tables_of(database) == {"alembic_version"}
    await migrate.upgrade(database)
    assert await differences(database) == []
    await migrate.require_current(database)
    await database.close()


@on_both
async def test_what_is_kept_outlives_a_second_start(database_address: str) -> None:
    database = Database(database_address)
    await migrate.upgrade(database)
    api_key = await People(database).bootstrap(ADMIN)
    assert api_key is not None
    await migrate.upgrade(database)
    assert (await Access(database).caller(api_key)).email == ADMIN
    await database.close()


@on_both
async def test_starts_at_the_same_time_wait_for_each_other(database_address: str) -> None:
    databases = [Database(database_address) for _ in range(3)]
    await asyncio.gather(*(migrate.upgrade(database) for database in databases))
    assert await differences(databases[0]) == []
    await asyncio.gather(*(database.close() for database in databases))


async def test_old_and_newer_databases_are_named(database_address: str) -> None:
    database = Database(database_address)
    with pytest.raises(InvalidRequestError, match=r"is at revision none.*migrate upgrade"):
        await migrate.require_current(database)
    await migrate.upgrade(database)
    async with database.engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InvalidRequestError, match="9999, which this version of Harmonia does not know"):
        await migrate.upgrade(database)
    await database.close()


def test_commands_walk_a_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"sqlite:///{tmp_path / 'harmonia.db'}"
    assert migrate.main(["upgrade", "--database", address]) == 0
    assert migrate.main(["downgrade", "--database", address]) == 0
    assert migrate.main(["upgrade", "--database", "mysql://me:secret@here/x"]) == 1
    told = capsys.readouterr().err
    assert "'mysql' are not supported" in told and "secret" not in told


async def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    database = Database("postgresql://me:secret@127.0.0.1:1/x")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1/x does not answer") as caught:
        await database.check()
    assert "secret" not in caught.value.message
    with pytest.raises(UnavailableError, match="send the request again"):
        await Access(database).caller("hk-any")
    with pytest.raises(UnavailableError, match="send the request again"):
        await People(database).bootstrap(ADMIN)
    assert database.usage.registry.get_sample_value("concorde_db_connections_failed_total") == 2.0
    await database.close()
