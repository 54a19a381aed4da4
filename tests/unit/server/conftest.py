"""A server over a scripted worker, reached over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from harmonia.config.server import ServerConfig
from harmonia.protocol.fleet import WorkerState
from harmonia.router import Router
from harmonia.server import Listener, bind, create_app
from tests.unit.server.scripted import ScriptedWorker, StillFleet


@dataclass
class Served:
    """A running server, its worker and a client."""

    http: httpx.AsyncClient
    worker: ScriptedWorker
    fleet: StillFleet
    listener: Listener
    task: asyncio.Task[None]
    port: int

    async def chat(self, **fields: object) -> httpx.Response:
        """Ask for a chat completion."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Start a server with settings: `async with serve(ServerConfig(...)) as served`."""

    @asynccontextmanager
    async def start(config: ServerConfig | None = None, ready: bool = True) -> AsyncIterator[Served]:
        config = config or ServerConfig()
        fleet = StillFleet()
        router = Router(fleet, config.http_client.timeout_secs)
        listener = Listener(create_app(config, router), config, router)
        bound = bind("127.0.0.1", 0)
        port = bound.getsockname()[1]
        async with ScriptedWorker(tmp_path / "w.sock").serving() as worker:
            fleet.set("r1", WorkerState.READY if ready else WorkerState.LOADING, worker.path)
            task = asyncio.create_task(listener.serve([bound]))
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
                while ready and (await http.get("/health")).status_code != 200:
                    await asyncio.sleep(0.01)
                yield Served(http, worker, fleet, listener, task, port)
            listener.should_exit = True
            await task

    return start


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    """A server with default settings."""
    async with serve() as running:
        yield running
