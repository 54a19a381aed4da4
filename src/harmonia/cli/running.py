"""A running server: fleet, router and listener put together."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
import time
from types import TracebackType

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from harmonia.cli.options import worker_address
from harmonia.cli.tables import print_error
from harmonia.config import WorkerConfig
from harmonia.config.server import ServerConfig
from harmonia.errors import UnavailableError
from harmonia.fleet import LocalFleet
from harmonia.log import ROUTINE
from harmonia.protocol.fleet import WorkerState, WorkerStatus
from harmonia.router import Router
from harmonia.server import Listener, bind, create_app

_LOG_HEAD = re.compile(r"^\S+ +[A-Z]+ +\S+: ")
FORCED_STOP_S = 0.3
EXAMPLE_QUESTION = "What is the capital of France?"


class Running:
    """One worker and the HTTP server in front of it, from entering the context to leaving it.

    The HTTP side answers from the start, with 503 until the model is ready.
    """

    def __init__(self, worker: WorkerConfig, server: ServerConfig) -> None:
        self._loading = True
        self.worker = worker
        self.console = Console(stderr=True)
        self._socket = bind(server.server.host, server.server.port)
        self.server = server = server.at_port(self._socket.getsockname()[1])
        self._fleet = LocalFleet(self._echo, max_silence_s=server.http_client.max_silence_secs)
        self._router = Router(self._fleet, server.http_client.timeout_secs)
        self._listener = Listener(create_app(server, self._router), server, self._router)
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Running:
        """Start the worker and begin to listen."""
        await self._fleet.start(self.worker)
        self._serving = asyncio.create_task(self._listener.serve([self._socket]))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, then stop the worker."""
        self._listener.should_exit = True
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)
        await self._fleet.close(FORCED_STOP_S if self._listener.force_exit else None)

    @property
    def url(self) -> str:
        """Where the server answers."""
        return self.server.server.url

    async def wait_ready(self) -> bool:
        """Show the worker's progress until it is ready; False when it refused, or a signal came first."""
        started = time.monotonic()
        name = self.worker.key
        self._say(f"loading {name} from {self.worker.model}")
        with Status(f"loading {escape(name)}", console=self.console) as status:
            while not self._router.ready:
                if self._serving is not None and self._serving.done():
                    return False
                current = self._fleet.statuses()[0]
                if current.state is WorkerState.FAILED:
                    status.stop()
                    self._explain(current)
                    return False
                seconds = time.monotonic() - started
                status.update(f"loading {escape(name)} ({seconds:.0f} s) {escape(_LOG_HEAD.sub('', current.progress))}")
                await self._wait_news()
        self._loading = False
        self._say(f"{name} is ready after {time.monotonic() - started:.1f} s")
        return True

    async def wait_end(self) -> None:
        """Serve until a signal."""
        if self._serving is not None:
            await asyncio.shield(self._serving)

    def show_address(self) -> None:
        """Print the URL and a command to try."""
        self.console.print(f"[green]serving[/green] [bold]{escape(self.worker.key)}[/bold] on {self.url}/v1")
        if self.worker.port is not None:
            self.console.print(f"clients that train connect to [bold]{escape(worker_address(self.worker))}[/bold]")
        self.console.print("try:")
        self.console.print(curl(self.url, self.worker.key, self.server.api_keys), markup=False, soft_wrap=True)

    def _echo(self, line: str) -> None:
        """Pass a worker's log on, except what the spinner shows already."""
        if not (self._loading and self.console.is_terminal and ROUTINE.match(line)):
            sys.stderr.write(line + "\n")

    def _say(self, line: str) -> None:
        # A terminal shows the same in its spinner.
        if not self.console.is_terminal:
            self.console.print(line, markup=False, soft_wrap=True)

    async def _wait_news(self) -> None:
        news = asyncio.create_task(self._router.wait_change())
        waits = {news} if self._serving is None else {news, self._serving}
        await asyncio.wait(waits, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()

    def _explain(self, status: WorkerStatus) -> None:
        failure = status.failure
        error = UnavailableError("the worker ended without a word") if failure is None else failure.error()
        print_error(self.console, error)


def curl(url: str, model: str, api_keys: tuple[str, ...]) -> str:
    """A command that asks the server something."""
    body = {"model": model, "messages": [{"role": "user", "content": EXAMPLE_QUESTION}], "stream": True}
    key = f' -H "Authorization: Bearer {api_keys[0]}"' if api_keys else ""
    return (
        f'curl -N {url}/v1/chat/completions -H "Content-Type: application/json"{key} \\\n'
        f"  -d {shlex.quote(msgspec.json.encode(body).decode())}"
    )
