"""A control plane on a real database, and the clients that people have."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from harmonia.config.control import ControlConfig
from harmonia.server.control import create_control_app
from harmonia.server.db.database import Database
from harmonia.server.db.tables import METADATA
from harmonia.server.services.services import Services

if TYPE_CHECKING:
    from adaptive_sdk import Adaptive

ADMIN = "admin@example.com"


class Plane:
    """A control plane in a thread of its own."""

    def __init__(self, config: ControlConfig) -> None:
        self.config = config
        self.api_key = ""
        self.services: Services | None = None
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._ready = threading.Event()
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()
        return f"http://{host}:{port}"

    def __enter__(self) -> Plane:
        self._thread.start()
        assert self._ready.wait(30), "the control plane did not start"
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


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    """On SQLite, with an admin."""
    with Plane(ControlConfig(data_dir=tmp_path)) as plane:
        yield plane


@pytest.fixture
def adaptive(plane: Plane) -> Adaptive:
    """The published SDK as the admin."""
    from adaptive_sdk import Adaptive  # loads hypothesis, which must not happen while pytest collects

    return Adaptive(base_url=plane.url, api_key=plane.api_key)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """Empty tables on SQLite."""
    database = Database(f"sqlite:///{tmp_path / 'harmonia.db'}")
    async with database.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
    yield database
    await database.close()
