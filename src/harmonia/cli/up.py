"""`harmonia up`: the control plane."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from fastapi import FastAPI
from rich.console import Console
from rich.markup import escape

from harmonia import log, tracing
from harmonia.cli import first_models
from harmonia.cli.app import app
from harmonia.cli.reporting import configure_log, reported
from harmonia.cli.tables import print_error
from harmonia.config.control import ControlConfig
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.server import InternalListener, Listener, bind
from harmonia.server.control import create_control_app, create_internal_app
from harmonia.server.db import migrate
from harmonia.server.db.alone import sole_holder, sole_server
from harmonia.server.db.database import Database
from harmonia.server.services.services import Services
from harmonia.server.settings import read_control_config, variables

DEFAULT_ADMIN = "admin@localhost"
OWNER_ONLY = 0o700

_HELP = f"""Start the control plane: projects, people, models, jobs and their API on one port.

Everything is kept in the data folder, ~/.harmonia, unless a database is named. \
The first start makes an admin and prints the API key this once. \
Ctrl-C lets running answers finish; a second one ends at once.

Each MODEL is registered, deployed into the project [bold]default[/bold], and can be asked as soon as it is online; \
models that were deployed once come back with every start.

[bold]Examples[/bold]

  harmonia up ./SmolLM2-135M-Instruct.Q4_1.gguf

  harmonia up --host 0.0.0.0 --admin ada@example.com --data-dir /srv/harmonia

  harmonia up --database postgresql://harmonia:PASSWORD@db.internal/harmonia

and then, in Python:

  from harmonia.sdk import Adaptive

  Adaptive(base_url="http://127.0.0.1:9000", api_key="hk-...").users.me()

[bold]Environment[/bold]

Every setting is a variable, over which options go; lists are JSON.

  {", ".join([*variables(), "ADAPTIVE_LOG_LEVEL", "ADAPTIVE_LOG_FORMAT (text or json)"])}

Traces of requests go to the OpenTelemetry collector that OTEL_EXPORTER_OTLP_ENDPOINT names (with the extra `otel`).
"""


@app.command(help=_HELP)
def up(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...", help="Hugging Face folders, GGUF files, or names of its hub.", show_default=False
        ),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME; by default a file in the data folder. A "
            "password is better kept in ADAPTIVE_DB__URL, where other users of this machine do not see it.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of everything that is kept; ~/.harmonia by default."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind; 127.0.0.1 by default.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 9000 by default, 0 takes a free one.")
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(
            metavar="EMAIL",
            help=f"Who the first start makes an admin; the first of ADAPTIVE_AUTH__ADMINS, else {DEFAULT_ADMIN}.",
        ),
    ] = None,
) -> None:
    """Start the control plane."""
    with reported():
        configure_log()
        config = control_config(os.environ, database, data_dir, host, port)
        admin = admin or next(iter(config.auth.admins), DEFAULT_ADMIN)
        tracing.configure("harmonia")
        try:
            code = uvloop.run(run(config, admin, first_models.found(models or ())))
        finally:
            tracing.close()
    raise typer.Exit(code)


def control_config(
    environment: Mapping[str, str], database: str | None, data_dir: Path | None, host: str | None, port: int | None
) -> ControlConfig:
    """The settings: the environment's, with what the command line says on top."""
    server = {"host": host, "port": port}
    overrides: dict[str, object] = {"server": {name: value for name, value in server.items() if value is not None}}
    if database is not None:
        overrides["db"] = {"url": database}
    if data_dir is not None:
        overrides["data_dir"] = data_dir
    return read_control_config(environment, **overrides)


async def run(config: ControlConfig, admin: str, models: Sequence[Path | str] = ()) -> int:
    """Serve until a signal; the exit code.

    admin: the address of whom the first start makes an admin. models: to be deployed into the project `default`.
    """
    console = Console(stderr=True)
    async with started(config, admin) as plane:
        if plane.api_key is not None:
            console.print(f"API key of {escape(admin)}, shown only now: [bold]{plane.api_key}[/bold]", soft_wrap=True)
        if await plane.meanwhile(plane.wait_listening()):
            console.print(f"[green]ready[/green] at [bold]{plane.url}[/bold], data in {escape(str(config.folder))}")
            await plane.meanwhile(welcome(console, plane, models))
        await plane.wait_end()
    return 0 if plane.has_listened else 1


class Plane:
    """A control plane that runs; made by `started`."""

    def __init__(self, services: Services, listener: Listener, url: str, api_key: str | None) -> None:
        self.services = services
        self.url = url
        """Where it answers."""
        self.api_key = api_key
        """The admin's, of whom it has just made; else None."""
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None

    @property
    def has_listened(self) -> bool:
        """Whether it ever answered."""
        return self._listener.started

    @property
    def is_ending(self) -> bool:
        """Whether a signal, or `stop`, has told it to end."""
        return self._listener.should_exit

    def start(self, listening: socket.socket) -> None:
        """Begin to answer."""
        self._serving = asyncio.create_task(self._listener.serve([listening]))

    async def wait_listening(self) -> None:
        """Returns when it answers."""
        await self._listener.wait_listening()

    async def meanwhile(self, work: Coroutine[None, None, None]) -> bool:
        """Whether work ends before serving does; else it is cancelled."""
        task = asyncio.create_task(work)
        await asyncio.wait((task, self._until_end()), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return False
        task.result()
        return True

    async def wait_end(self) -> None:
        """Serve until a signal, or until `stop`."""
        await asyncio.shield(self._until_end())

    def stop(self) -> None:
        """Let it end as the first signal does."""
        self._listener.should_exit = True

    def _until_end(self) -> asyncio.Task[None]:
        assert self._serving is not None
        return self._serving


@asynccontextmanager
async def started(config: ControlConfig, admin: str) -> AsyncIterator[Plane]:
    """A control plane that begins to answer, and ends with the context.

    admin: the address of whom the first start makes an admin. HarmoniaError if the port, the folder or the database
    cannot be used.
    """
    make_folder(config.folder)
    with alone_in(config.folder), bind(config.server.host, config.server.port) as listening:
        config = config.at_port(listening.getsockname()[1])
        async with opened(config, _end) as database:
            services = Services(config, database)
            api_key = await services.people.bootstrap(admin)
            application = create_control_app(services)
            listener = Listener(
                application,
                config,
                services.serving.router,
                websockets=True,
                before_end=services.job_runner.put_off,
            )
            plane = Plane(services, listener, config.server.url, api_key)
            async with operators(application, config):
                plane.start(listening)
                try:
                    yield plane
                finally:
                    plane.stop()
                    await plane.wait_end()


def _end(reason: str) -> None:
    """End as a signal would: the database is no longer this server's own."""
    log.get_logger(__name__).critical("%s; this server ends", reason)
    signal.raise_signal(signal.SIGTERM)


@asynccontextmanager
async def operators(application: FastAPI, config: ControlConfig) -> AsyncIterator[None]:
    """Answers on the internal port meanwhile, if there is one."""
    if config.server.internal_port is None:
        yield
        return
    with bind(config.server.host, config.server.internal_port, "ADAPTIVE_SERVER__INTERNAL_PORT") as listening:
        internal = InternalListener(create_internal_app(application))
        serving = asyncio.create_task(internal.serve([listening]))
        try:
            yield
        finally:
            internal.should_exit = True
            await serving


def make_folder(folder: Path) -> None:
    """The data folder, for its owner alone; raises `InvalidRequestError` when it cannot be made."""
    try:
        if not folder.is_dir():
            folder.mkdir(mode=OWNER_ONLY, parents=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "it cannot be written to")
    except OSError as error:
        raise InvalidRequestError(
            f"the data folder {folder} cannot be used: {error.strerror}; --data-dir names another", field="data_dir"
        ) from error


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Holds the data folder; raises `InvalidRequestError` while another server does."""
    return sole_holder(folder / "lock", f"the data folder {folder}", "stop it, or name another with --data-dir")


@asynccontextmanager
async def opened(config: ControlConfig, lost: Callable[[str], None]) -> AsyncIterator[Database]:
    """The database, for this server alone, with tables that are up to date. lost: see `sole_server`."""
    database = Database(config.database_address)
    try:
        await database.check()
        async with sole_server(database, "stop it, or name another database with --database (ADAPTIVE_DB__URL)", lost):
            await (migrate.upgrade if config.db.run_migrations else migrate.require_current)(database)
            yield database
    finally:
        await database.close()


async def welcome(console: Console, plane: Plane, models: Sequence[Path | str]) -> None:
    """Deploy the models, and print what to try. A model that cannot be deployed leaves the server running."""
    keys: list[str] = []
    url, api_key = plane.url, plane.api_key
    if models:
        try:
            keys = await first_models.deploy(plane.services, models, lambda line: console.print(line, markup=False))
        except HarmoniaError as error:
            print_error(console, error)
    if api_key is None and not keys:
        return
    shown = api_key or "$ADAPTIVE_API_KEY"
    in_python = f'"{api_key}"' if api_key else 'os.environ["ADAPTIVE_API_KEY"]'
    me = (
        f'curl {url}/api/graphql -H "Authorization: Bearer {shown}" -H "Content-Type: application/json" \\\n'
        """  -d '{"query": "{ me { email } projects { key } }"}'"""
    )
    known = f'  from harmonia.sdk import Adaptive\n  Adaptive(base_url="{url}", api_key={in_python}).users.me()'
    in_shell, with_sdk = (
        (first_models.curl(url, keys[0], shown), first_models.python(url, keys[0], in_python)) if keys else (me, known)
    )
    example = f"try:\n{in_shell}\nor, in Python:\n{with_sdk}"
    console.print(example, markup=False, highlight=False, soft_wrap=True)
