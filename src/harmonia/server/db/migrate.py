"""Brings the tables of a database up to date, and makes new steps of that way.

`harmonia up` calls `upgrade` at its start. Whoever changes a table runs `python -m harmonia.server.db.migrate new
"what changes"` and reads what was written; `upgrade` and `downgrade` are commands too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.log import get_logger
from harmonia.server.db.database import Database

log = get_logger(__name__)

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x4861726D6F6E6961
"""Of PostgreSQL, held while one process migrates."""


async def upgrade(database: Database, revision: str = "head") -> None:
    """Make or change tables up to a revision; others that start at the same time wait.

    Nothing is changed when a step fails. Raises `InvalidRequestError` for a database that a newer version wrote.
    """
    current, newest = await revision_of(database), newest_revision()
    if current is not None and current not in _revisions():
        raise InvalidRequestError(
            f"the database is at revision {current}, which this version of Harmonia does not know (its newest is "
            f"{newest}); start the version that wrote it, or a newer one",
            field="ADAPTIVE_DB__URL",
        )
    if current != newest or revision != "head":
        await _alembic(database, lambda config: command.upgrade(config, revision))
        log.info("the database went from revision %s to %s", current or "none", await revision_of(database))


async def downgrade(database: Database, revision: str = "base") -> None:
    """Go back to a revision; `base` leaves no tables. What the newer revisions kept is lost."""
    await _alembic(database, lambda config: command.downgrade(config, revision))


async def require_current(database: Database) -> None:
    """Raise `InvalidRequestError` unless the tables are those of this version."""
    current, newest = await revision_of(database), newest_revision()
    if current != newest:
        raise InvalidRequestError(
            f"the database is at revision {current or 'none'}, and this version of Harmonia wants {newest}; run "
            "`python -m harmonia.server.db.migrate upgrade`, or start without ADAPTIVE_DB__RUN_MIGRATIONS=false",
            field="ADAPTIVE_DB__RUN_MIGRATIONS",
        )


async def revision_of(database: Database) -> str | None:
    """Where a database is; None: it has no tables of ours."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


def newest_revision() -> str | None:
    """Where a database should be."""
    return ScriptDirectory.from_config(_config()).get_current_head()


async def new(message: str) -> Path:
    """Write the step from the newest revision to the tables of the code; the file that was written."""
    number = len(_revisions()) + 1
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder, 'empty.db')}")
        try:
            await upgrade(database)
            await _alembic(
                database, lambda config: command.revision(config, message, autogenerate=True, rev_id=f"{number:04d}")
            )
        finally:
            await database.close()
    written = next((_FOLDER / "versions").glob(f"r{number:04d}_*.py"))
    lines = written.read_text(encoding="utf-8").splitlines(keepends=True)
    written.write_text("".join(line for line in lines if not line.strip().startswith("# ###")), encoding="utf-8")
    return written


def _config(connection: Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "r%%(rev)s_%%(slug)s")
    return config


def _revisions() -> list[str]:
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


async def _alembic(database: Database, action: Callable[[Config], object]) -> None:
    async with _alone(database) as connection:
        await connection.run_sync(lambda sync: action(_config(sync)))


@asynccontextmanager
async def _alone(database: Database) -> AsyncIterator[AsyncConnection]:
    """A transaction that only one process at a time can be in, for changes of tables too."""
    async with database.engine.connect() as connection:
        if not database.is_sqlite:
            await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            yield connection
            await connection.commit()
            return
        # SQLite changes a table by copying it, and dropping the old one would delete what refers to it.
        await connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
            broken = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).all()
            assert not broken, broken
            await connection.commit()
        finally:
            await connection.rollback()
            await connection.exec_driver_sql("PRAGMA foreign_keys=ON")


def main(arguments: Sequence[str]) -> int:
    """Run a command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m harmonia.server.db.migrate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("new", help="write a revision out of what changed in the tables").add_argument("message")
    for name, target, text in (("upgrade", "head", "go on to a revision"), ("downgrade", "base", "go back to one")):
        walk = commands.add_parser(name, help=text)
        walk.add_argument("revision", nargs="?", default=target, help=f"(default: {target})")
        walk.add_argument("--database", help="sqlite:///PATH or postgresql://... (default: ADAPTIVE_DB__URL)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "new":
            sys.stdout.write(f"{asyncio.run(new(options.message))}\n")
        else:
            asyncio.run(_walk(options))
    except HarmoniaError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 1
    return 0


async def _walk(options: argparse.Namespace) -> None:
    address = options.database or os.environ.get("ADAPTIVE_DB__URL")
    if not address:
        raise InvalidRequestError("no database is named; give --database, or set ADAPTIVE_DB__URL", field="database")
    database = Database(address)
    try:
        await (upgrade if options.command == "upgrade" else downgrade)(database, options.revision)
    finally:
        await database.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
