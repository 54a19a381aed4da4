"""`harmonia serve` as its users run it: a tree of processes, spoken to over streamed HTTP."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import psutil

from benchmarks import client
from benchmarks.conversation import SECONDS_TO_LEAVE, last_words
from benchmarks.engines import EngineSpec
from benchmarks.errors import BenchmarkError
from benchmarks.process import READY_SHAPE, Side, environment
from benchmarks.work import Draw, Generation

NAME = "model"
POLL_S = 0.02
# What a process of the tree is called, by the module that it runs.
ROLES = {
    "harmonia.cli": "server",
    "benchmarks.fronts": "server",
    "harmonia.worker": "io",
    "harmonia.worker.device": "device",
}


class Server(Side):
    """A running `harmonia serve`; `serving` makes one."""

    def __init__(self, popen: subprocess.Popen[bytes], port: int, errors: IO[str]) -> None:
        self.health_s = self.ready_s = 0.0
        """Since the spawn: until `/health` said 200, and until the first token came back."""
        self._popen = popen
        self._port = port
        self._errors = errors

    def wait_ready(self, draw: Draw, began: float) -> None:
        """Wait for a good health and a first token; `began` is when the process was spawned."""
        while not self._healthy():
            if self._popen.poll() is not None:
                raise BenchmarkError(
                    f"harmonia serve ended with status {self._popen.returncode}:\n{last_words(self._errors)}"
                )
            time.sleep(POLL_S)
        self.health_s = round(time.perf_counter() - began, 2)
        self.generate(draw.prompts(READY_SHAPE, "ready"), READY_SHAPE.num_output)
        self.ready_s = round(time.perf_counter() - began, 2)

    @property
    def tree(self) -> dict[int, str]:
        """Its processes by id."""
        try:
            parent = psutil.Process(self._popen.pid)
            return {process.pid: role_of(process.cmdline()) for process in (parent, *parent.children(recursive=True))}
        except psutil.NoSuchProcess:
            return {}

    @property
    def processes(self) -> Mapping[int, str]:
        """Its processes and this one, which is its client."""
        return {**self.tree, os.getpid(): "client"}

    def generate(self, prompts: list[list[int]], num_output: int) -> Generation:
        """Run all prompts at once, greedily, each to exactly `num_output` tokens."""
        return client.generate(self._port, NAME, prompts, num_output)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of the tree."""
        for pid in self.tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """Ask it to end, then end what is left."""
        self.send_signal(signal.SIGCONT)
        tree = list(self.tree)
        self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(SECONDS_TO_LEAVE)
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection(client.HOST, self._port, timeout=1)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def role_of(command: Sequence[str]) -> str:
    """Return what a process is called; one that is none of ours is `other`."""
    return next((ROLES[word] for word in command if word in ROLES), "other")


@contextlib.contextmanager
def serving(spec: EngineSpec, options: Sequence[str], draw: Draw, *, cold: bool) -> Iterator[Server]:
    """Start a server, wait for its first token, and end all its processes afterwards."""
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
        caches = stack.enter_context(tempfile.TemporaryDirectory()) if cold else None
        port = _free_port()
        began = time.perf_counter()
        popen = subprocess.Popen(
            [
                *(spec.python, "-m", "harmonia.cli", "serve", spec.model, "--name", NAME, "--port", str(port)),
                *("--precision", spec.precision, "--threads", str(spec.threads), *options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=environment(spec, caches),
            start_new_session=True,
        )
        server = Server(popen, port, errors)
        stack.callback(server.close)
        server.wait_ready(draw, began)
        yield server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((client.HOST, 0))
        port: int = probe.getsockname()[1]
        return port
