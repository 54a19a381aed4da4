"""One server for each database, and what can be done to it while there is none."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import text
from typer.testing import CliRunner

from harmonia.cli.main import app
from harmonia.errors import InvalidRequestError
from harmonia.server.db.alone import sole_server, this_process
from harmonia.server.db.database import Database
from tests.integration.control.conftest import on_both
from tests.integration.control.starting import started

_HOLDING = """
import asyncio, sys
from harmonia.server.db.alone import sole_server
from harmonia.server.db.database import Database

async def main():
    async with sole_server(Database(sys.argv[1]), "stop it", print):
        print("held", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def ended(reason: str) -> None:
    raise AssertionError(reason)


@on_both
async def test_the_second_is_refused_with_the_name_of_the_first(database: Database) -> None:
    async with sole_server(database, "stop it", ended):
        with pytest.raises(InvalidRequestError) as refusal:
            async with sole_server(Database(database.url), "stop it", ended):
                pass
    assert this_process() in refusal.value.message
    assert refusal.value.message.endswith("; stop it")
    async with sole_server(database, "stop it", ended):
        pass


@on_both
async def test_a_crash_leaves_nothing_locked(database: Database) -> None:
    address = database.url.render_as_string(hide_password=False)
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", _HOLDING, address, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    with pytest.raises(InvalidRequestError, match=f"process {holder.pid} on "):
        async with sole_server(database, "stop it", ended):
            pass
    holder.kill()
    await holder.wait()
    async with sole_server(database, "stop it", ended):
        pass


@pytest.mark.parametrize("database_address", ["postgresql"], indirect=True)
async def test_a_connection_that_breaks_is_made_again(database: Database) -> None:
    async with sole_server(database, "stop it", ended):
        assert await _break_lock(database) == 1
        await _until_held(database)
        with pytest.raises(InvalidRequestError):
            async with sole_server(Database(database.url), "stop it", ended):
                pass


@pytest.mark.parametrize("database_address", ["postgresql"], indirect=True)
async def test_whoever_lost_the_database_to_another_hears_of_it(database: Database) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    async with sole_server(database, "stop it", told.put_nowait), database.engine.connect() as other:
        # Asked for now and granted when the first is gone, before it can come back.
        raw = await other.get_raw_connection()
        query = "SELECT objid::bigint | (classid::bigint << 32) FROM pg_locks WHERE locktype = 'advisory'"
        key = (await other.execute(text(query))).scalar_one()
        assert raw.driver_connection is not None
        waiting = asyncio.create_task(raw.driver_connection.execute(f"SELECT pg_advisory_lock({key})"))
        while not await _waiting(database):
            await asyncio.sleep(0.05)
        await _break_lock(database)
        assert "another server has taken the database" in await asyncio.wait_for(told.get(), 60)
        await waiting


async def _break_lock(database: Database) -> int:
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    async with database.engine.connect() as connection:
        return int((await connection.execute(text(query))).scalar_one())


async def _waiting(database: Database) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with database.engine.connect() as connection:
        return bool((await connection.execute(text(query))).scalar_one())


async def _until_held(database: Database) -> None:
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    async with asyncio.timeout(60):
        while True:
            async with database.engine.connect() as connection:
                if (await connection.execute(text(query))).scalar_one():
                    return
            await asyncio.sleep(0.05)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """A command in this process; the log of the tests stays as it is."""
    logger = logging.getLogger("harmonia")
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(logger, "level", logger.level)
    return lambda *arguments: CliRunner().invoke(app, list(arguments), terminal_width=400)


def test_a_lost_key_is_replaced_while_the_server_is_down(tmp_path: Path, run: Callable[..., Result]) -> None:
    folder = tmp_path / "data"
    address = f"sqlite:///{folder / 'harmonia.db'}"
    with started(folder) as up:
        lost, holder = up.api_key, f"process {up.process.pid} on "
        refused = run("admin", "new-key", "--data-dir", str(folder))
        assert refused.exit_code == 1
        assert holder in refused.stderr and "harmonia user create" in refused.stderr
        second = run("up", "--port", "0", "--data-dir", str(tmp_path / "other"), "--database", address)
        assert second.exit_code == 1
        assert holder in second.stderr and "--database" in second.stderr
        assert up.end(signal.SIGKILL) == -signal.SIGKILL

    assert "nobody@example.com" in run("admin", "new-key", "nobody@example.com", "--data-dir", str(folder)).stderr
    assert "--data-dir" in run("admin", "new-key", "--data-dir", str(tmp_path / "none")).stderr
    assert not (tmp_path / "none").exists()
    made = run("admin", "new-key", "admin@localhost", "--data-dir", str(folder), "--revoke-others")
    assert made.exit_code == 0, made.stderr
    api_key = made.stdout.strip()
    with started(folder) as up:
        query = '{ me { email } auditLog(filter: {action: "key.recover"}) { nodes { entity user { email } details } } }'
        with up.client(api_key) as client:
            found = client.post("/api/graphql", json={"query": query}).json()["data"]
        (entry,) = found["auditLog"]["nodes"]
        assert (found["me"]["email"], entry["entity"], entry["user"]) == (
            "admin@localhost",
            "user/admin@localhost",
            None,
        )
        assert entry["details"]["others_revoked"] and api_key not in str(entry)
        with up.client(lost) as client:
            assert client.post("/api/graphql", json={"query": query}).status_code == 401
        assert up.end(signal.SIGTERM) == 0
