"""A control plane on a real database, and the clients that people have."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from benchmarks import postgres
from harmonia.config.control import ControlConfig
from harmonia.server.control import create_control_app
from harmonia.server.db.database import Database
from harmonia.server.db.tables import METADATA
from harmonia.server.services.services import Services

if TYPE_CHECKING:
    from adaptive_sdk import Adaptive

ADMIN = "admin@example.com"

on_both = pytest.mark.parametrize("database_address", ["sqlite", "postgresql"], indirect=True)
"""For tests, or as `pytestmark`: the fixtures `plane` and `database` on either database, not only on SQLite."""


class Plane:
    """A control plane in a thread of its own."""

    def __init__(self, config: ControlConfig) -> None:
        self.api_key = ""
        self.services: Services | None = None
        self._socket = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delays on
        self._socket.bind(("127.0.0.1", 0))
        # Jobs reach it by what its settings say.
        self.config = config.at_port(self._socket.getsockname()[1])
        self._ready = threading.Event()
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()
        return f"http://{host}:{port}"

    def __enter__(self) -> Plane:
        self._thread.start()
        assert self._ready.wait(90), "the control plane did not start"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()

    async def _serve(self) -> None:
        database = Database(self.config.database_address)
        async with database.engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
        self.services = Services(self.config, database)
        self.api_key = await self.services.people.bootstrap(ADMIN) or self.api_key
        app = create_control_app(self.services)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        serving = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started:
            await asyncio.sleep(0.01)
        self._ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Postgres]:
    """Started when the first test of a process wants it."""
    with postgres.running() as server:
        yield server


@pytest.fixture
def database_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: a file, unless `on_both` asks for the other kind."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{tmp_path / 'harmonia.db'}"
    server: postgres.Postgres = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
def plane(tmp_path: Path, database_address: str) -> Iterator[Plane]:
    """With an admin."""
    with Plane(ControlConfig(data_dir=tmp_path, db={"url": database_address})) as plane:
        yield plane


@pytest.fixture
def adaptive(plane: Plane) -> Iterator[Adaptive]:
    """The published SDK as the admin."""
    from adaptive_sdk import Adaptive  # loads hypothesis, which must not happen while pytest collects

    with contextlib.closing(Adaptive(base_url=plane.url, api_key=plane.api_key)) as client:
        yield client


@pytest.fixture
def lab(adaptive: Adaptive) -> Adaptive:
    """The same in a project with two models and a metric."""
    adaptive.projects.create("lab", "Lab")
    adaptive.set_default_project("lab")
    for name in ("one", "two"):
        adaptive.models.add_external(name=name, external_model_id=name, api_key="secret", provider="open_ai")
        adaptive.models.add_to_project(name, "lab")
    adaptive.feedback.register_key("lab", "stars", "scalar")
    return adaptive


@pytest.fixture
def adaptive_as(plane: Plane) -> Iterator[Callable[[str], Adaptive]]:
    """The published SDK with the API key of somebody else."""
    from adaptive_sdk import Adaptive

    with contextlib.ExitStack() as clients:
        yield lambda api_key: clients.enter_context(contextlib.closing(Adaptive(base_url=plane.url, api_key=api_key)))


@pytest.fixture
async def database(database_address: str) -> AsyncIterator[Database]:
    """Empty tables."""
    database = Database(database_address)
    async with database.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    yield database
    await database.close()
