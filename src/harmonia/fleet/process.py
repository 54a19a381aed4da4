"""One worker process: start it, read its log, notice that it is ready or gone, end it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import msgspec

from harmonia.config import WorkerConfig
from harmonia.config.worker import CPU, cores_of
from harmonia.log import get_logger
from harmonia.protocol.fleet import WorkerFailure

log = get_logger(__name__)

FATAL_PREFIX = "HARMONIA-FATAL "
"""The worker's last line when it refuses to load; JSON `{"code", "message", "details"}` follows."""
REFUSED_EXIT_CODE = 3
_POLL_S = 0.05
_KEPT_LINES = 20
_PR_SET_PDEATHSIG = 1


class WorkerProcess:
    """A running worker. Make it with `spawn`."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path, on_line: Callable[[str], None]) -> None:
        self._process = process
        self._on_line = on_line
        self._socket = socket
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._fatal: WorkerFailure | None = None
        self._reader = asyncio.create_task(self._read_log())

    @classmethod
    async def spawn(
        cls, config: WorkerConfig, on_line: Callable[[str], None], environment: Mapping[str, str] | None = None
    ) -> WorkerProcess:
        """Start `python -m harmonia.worker` with this configuration; `on_line` gets every line that it logs.

        environment: variables beside those of this process.
        """
        socket = Path(config.socket)
        socket.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a queue.py in the user's folder is not Python's
            "-m",
            "harmonia.worker",
            "--config-json",
            msgspec.json.encode(config).decode(),
            env={**os.environ, **_visible_gpus(config.place), **(environment or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # Its own session: Ctrl-C in a terminal reaches the server, which ends its workers in order.
            start_new_session=True,
            preexec_fn=partial(_prepare, os.getpid(), cores_of(config.place)) if sys.platform == "linux" else None,
        )
        return cls(process, socket, on_line)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def refused(self) -> bool:
        """Whether it ended because it cannot load, now or ever."""
        return self._process.returncode == REFUSED_EXIT_CODE

    def failure(self) -> WorkerFailure:
        """Why it ended: its own words if it left any, else its exit code and last lines."""
        if self._fatal is not None:
            return self._fatal
        code = self._process.returncode
        end = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        tail = "\n".join(self._lines)
        return WorkerFailure(
            code="worker_lost", message=f"the worker ended with {end}" + (f":\n{tail}" if tail else "")
        )

    async def wait_ready(self) -> bool:
        """True once it listens on its socket, False when it ended before."""
        while self._process.returncode is None:
            if self._socket.exists():
                return True
            await asyncio.sleep(_POLL_S)
        await self._reader
        return False

    async def wait(self) -> None:
        """Wait for its end."""
        await self._process.wait()
        await self._reader

    async def stop(self, timeout_s: float) -> None:
        """Ask it to end, then make it."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), timeout_s)
            except TimeoutError:
                log.warning("worker %d did not end within %g s and is killed", self.pid, timeout_s)
        # Also after its end: whatever it started is in its process group.
        self._signal(signal.SIGKILL)
        await self._process.wait()
        await self._reader
        self._socket.unlink(missing_ok=True)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self.pid, number)
            else:
                self._process.send_signal(number)

    async def _read_log(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                # Longer than the reader's buffer, which it has dropped.
                continue
            if not line:
                return
            self._take(line.decode(errors="replace").rstrip("\n"))

    def _take(self, line: str) -> None:
        if line.startswith(FATAL_PREFIX):
            with contextlib.suppress(msgspec.MsgspecError):
                self._fatal = msgspec.json.decode(line.removeprefix(FATAL_PREFIX), type=WorkerFailure)
                return
        self._lines.append(line)
        self._on_line(line)


def _visible_gpus(place: str) -> dict[str, str]:
    """The variables that show a worker the GPU of its place, and no other."""
    if not place:
        return {}
    is_cpu = place.partition(":")[0] == CPU
    order = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # that of nvidia-smi, where nobody chose another
    return {"CUDA_VISIBLE_DEVICES": "" if is_cpu else place, "CUDA_DEVICE_ORDER": order}


def end_with(parent: int, number: signal.Signals) -> None:
    """In a new process of Linux: be sent a signal when the parent ends. Without it a server that is killed leaves its
    processes behind, holding the memory that the next start needs."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(REFUSED_EXIT_CODE)  # it was killed before the signal was asked for


def _prepare(parent: int, cores: Collection[int] | None) -> None:
    end_with(parent, signal.SIGTERM)
    if cores is not None:
        os.sched_setaffinity(0, cores)
