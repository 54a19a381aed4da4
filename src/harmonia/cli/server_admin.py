"""`harmonia admin`: what is done to a server's database by who may read its files, while no server runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harmonia.cli.app import app
from harmonia.cli.reporting import configure_log, reported
from harmonia.cli.up import control_config
from harmonia.errors import InvalidRequestError
from harmonia.server.db import migrate
from harmonia.server.db.alone import sole_server
from harmonia.server.db.database import Database, database_url
from harmonia.server.services.people.people import People

_RUNNING = (
    "ask another admin for a key of a new account (`harmonia user create`), or stop the server, run this again, and "
    "start it"
)

commands = typer.Typer(name="admin", help="Repairs of a server's database, while it is stopped.", no_args_is_help=True)
app.add_typer(commands)


@commands.callback()
def admin() -> None:
    """A group even with one command."""


@commands.command("new-key")
def new_key(
    email: Annotated[
        str | None,
        typer.Argument(help="An admin; whoever has been one for longest unless given.", show_default=False),
    ] = None,
    database: Annotated[
        str | None, typer.Option(metavar="URL", help="As `harmonia up` has it; by default a file in the data folder.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(file_okay=False, help="As `harmonia up` has it; ~/.harmonia by default.")
    ] = None,
    revoke_others: Annotated[
        bool, typer.Option("--revoke-others", help="Refuse the admin's other keys from now on: somebody may have them.")
    ] = False,
) -> None:
    """Make a new API key for an admin who has lost theirs, and print it this once.

    It works on the database itself, with the settings of `harmonia up`, and is noted in the audit log.

      harmonia admin new-key ada@example.com --data-dir /srv/harmonia
    """
    with reported():
        configure_log("ERROR")
        config = control_config(os.environ, database, data_dir, None, None)
        owner, api_key = asyncio.run(_new_key(config.database_address, email, revoke_others))
    Console(stderr=True).print(f"API key of {owner}, shown only now:", markup=False, highlight=False, soft_wrap=True)
    print(api_key)


async def _new_key(address: str, email: str | None, revoke_others: bool) -> tuple[str, str]:
    url = database_url(address)
    if url.get_backend_name() == "sqlite" and not (url.database and Path(url.database).is_file()):
        raise InvalidRequestError(
            f"there is no database {url.database}; name its folder with --data-dir, or its address with --database",
            field="data_dir",
        )
    database = Database(url)
    try:
        await database.check()
        async with sole_server(database, _RUNNING, lambda _: None):
            await migrate.require_current(database)
            return await People(database).recover(email, revoke_others=revoke_others)
    finally:
        await database.close()
