"""Real servers as a user starts them: `harmonia serve MODEL` in a process of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from harmonia.client import HarmonyClient, get_client
from tests.bare_worker import bare_worker
from tests.integration.tiny_model import make_adapter, make_model

START_TIMEOUT_S = 90


@dataclass
class Server:
    """A running `harmonia serve`."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    ended: bool = False
    url: str = ""

    def read(self) -> None:
        """Take in its output until it ends."""
        assert self.process.stderr
        for line in self.process.stderr:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def wait_line(self, pattern: str) -> re.Match[str] | None:
        """The first output that matches, None when the process ended without it."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, "".join(self.lines))

        with self.changed:
            assert self.changed.wait_for(lambda: found() or self.ended, START_TIMEOUT_S), self.output
            return found()

    @property
    def output(self) -> str:
        """Everything that it printed."""
        return "".join(self.lines)

    def client(self, **options: object) -> httpx.Client:
        """An HTTP client for it."""
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def stop(self) -> int:
        """Ask it to end; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


StartServer = Callable[..., AbstractContextManager[Server]]


@contextlib.contextmanager
def start_server(model: Path, *options: str, env: dict[str, str] | None = None, ready: bool = True) -> Iterator[Server]:
    """`harmonia serve MODEL --port 0 OPTIONS`, ended at the end of the context."""
    command = [sys.executable, "-m", "harmonia.cli", "serve", str(model), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
    server = Server(process)
    reader = threading.Thread(target=server.read)
    reader.start()
    try:
        if ready:
            address = server.wait_line(r"on (http://\S+)/v1")
            assert address, server.output
            server.url = address.group(1)
        yield server
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.stop()
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr
        process.stderr.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a Hugging Face folder."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Five adapters for it, one more than may be loaded."""
    folder = tmp_path_factory.mktemp("adapters")
    return tuple(make_adapter(folder / f"a{seed}", seed) for seed in range(1, 6))


@pytest.fixture(scope="session")
def server(tiny: Path) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    with start_server(tiny, "--kv-cache-len", "8192", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the bare worker keeps models."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="session")
def address(registry: Path) -> Iterator[str]:
    """One bare worker for all tests that leave it as it was."""
    with bare_worker(registry) as running:
        yield running


@pytest.fixture
async def client(address: str) -> AsyncIterator[HarmonyClient]:
    """A client of the bare worker; what it spawned is gone after the test."""
    async with await get_client(address, num_gpus=1) as connected:
        yield connected


@pytest.fixture(scope="session")
def start() -> StartServer:
    """Start a server of one's own."""
    return start_server
