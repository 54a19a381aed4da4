"""One worker process: start it, read its log, notice that it is ready or gone, end it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
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
from harmonia.protocol.pulse import Pulse

log = get_logger(__name__)

FATAL_PREFIX = "HARMONIA-FATAL "
"""The worker's last line when it refuses to load; JSON `{"code", "message", "details"}` follows."""
REFUSED_EXIT_CODE = 3
_POLL_S = 0.05
_LAST_WORDS_S = 5.0
_KEPT_LINES = 20
_PR_SET_PDEATHSIG = 1


class WorkerProcess:
    """A running worker. Make it with `spawn`."""

    def __init__(
        self, process: asyncio.subprocess.Process, config: WorkerConfig, on_line: Callable[[str], None], pulse: Pulse
    ) -> None:
        self._process = process
        self._on_line = on_line
        self._socket = Path(config.socket)
        self._max_silence_s = config.max_silence_s
        self._was_silent = False
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._fatal: WorkerFailure | None = None
        self._reader = asyncio.create_task(self._read_log())
        self._guard = asyncio.create_task(self._kill_if_silent(pulse))

    @classmethod
    async def spawn(
        cls, config: WorkerConfig, on_line: Callable[[str], None], environment: Mapping[str, str] | None = None
    ) -> WorkerProcess:
        """Start `python -m harmonia.worker` with this configuration; `on_line` gets every line that it logs.

        environment: variables beside those of this process.
        """
        Path(config.socket).unlink(missing_ok=True)
        ours, theirs = socket.socketpair()
        pulse = Pulse(ours, config.max_silence_s)
        try:
            with theirs:
                process = await _spawn(config, theirs.fileno(), environment or {})
        except BaseException:
            pulse.close()
            raise
        return cls(process, config, on_line, pulse)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def refused(self) -> bool:
        """Whether it ended because it cannot load, now or ever."""
        return self._process.returncode == REFUSED_EXIT_CODE

    def failure(self) -> WorkerFailure:
        """Why it ended: that it was silent, else its own words if it left any, else its exit code and last lines."""
        tail = "".join(f"\n{line}" for line in self._lines)
        if self._was_silent:
            return WorkerFailure(
                code="worker_lost",
                message=f"the worker hung: it did not answer for {self._max_silence_s:g} s and was killed; if it was "
                f"only slow, raise ADAPTIVE_HTTP_CLIENT__MAX_SILENCE_SECS{tail and ':'}{tail}",
            )
        if self._fatal is not None:
            return self._fatal
        code = self._process.returncode
        end = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return WorkerFailure(code="worker_lost", message=f"the worker ended with {end}{tail and ':'}{tail}")

    async def wait_ready(self) -> bool:
        """True once it listens on its socket, False when it ended before."""
        while self._process.returncode is None:
            if self._socket.exists():
                return True
            await asyncio.sleep(_POLL_S)
        await self.wait()
        return False

    async def wait(self) -> None:
        """Wait for its end, and end what it started: that would hold its memory and its log."""
        await exited(self._process)
        self._signal(signal.SIGKILL)
        await asyncio.wait((self._reader,), timeout=_LAST_WORDS_S)
        self._reader.cancel()

    async def stop(self, timeout_s: float) -> None:
        """Ask it to end, then make it."""
        self._guard.cancel()
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(exited(self._process), timeout_s)
            except TimeoutError:
                log.warning("worker %d did not end within %g s and is killed", self.pid, timeout_s)
                self._signal(signal.SIGKILL)
        await self.wait()
        await asyncio.gather(self._guard, return_exceptions=True)
        self._socket.unlink(missing_ok=True)

    async def _kill_if_silent(self, pulse: Pulse) -> None:
        with contextlib.closing(pulse):
            await pulse.lost()
        log.error("worker %d has not answered for %g s and is killed", self.pid, self._max_silence_s)
        self._was_silent = True
        self._signal(signal.SIGKILL)

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
        # A terminal that is gone or a full disk must not stop this reader: the worker would wait for it, for ever.
        with contextlib.suppress(OSError):
            self._on_line(line)


async def exited(process: asyncio.subprocess.Process) -> int:
    """Wait for a process's end; its exit status. asyncio's own `wait` waits for its pipes as well: for ever where a
    process that it left behind holds one, or where nobody reads what it wrote."""
    while process.returncode is None:
        await asyncio.sleep(_POLL_S)
    return process.returncode


async def _spawn(config: WorkerConfig, pulse_fd: int, environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # a queue.py in the user's folder is not Python's
        "-m",
        "harmonia.worker",
        "--config-json",
        msgspec.json.encode(config).decode(),
        "--pulse-fd",
        str(pulse_fd),
        pass_fds=[pulse_fd],
        env={**os.environ, **_visible_gpus(config.place), **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        # Its own session: Ctrl-C in a terminal reaches the server, which ends its workers in order.
        start_new_session=True,
        preexec_fn=partial(_prepare, os.getpid(), cores_of(config.place)) if sys.platform == "linux" else None,
    )


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
