"""A fleet of processes on this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from subprocess import SubprocessError

import msgspec

from harmonia.config import WorkerConfig
from harmonia.fleet.process import WorkerProcess
from harmonia.log import get_logger
from harmonia.protocol.fleet import Fleet, WorkerFailure, WorkerState, WorkerStatus

log = get_logger(__name__)

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
STABLE_AFTER_S = 60.0
_LONGEST_TMP = 64
"""Bytes: below a longer folder for temporary files, the address of a socket would be longer than the system takes."""
MAX_FAILED_LOADS = 3
"""A worker that dies this often in a row while loading is given up."""


class LocalFleet(Fleet):
    """Worker processes of this machine, each with a socket in a private folder, restarted when they crash or hang."""

    def __init__(
        self,
        echo: Callable[[str], None] | None = None,
        stop_timeout_s: float = 10.0,
        environment: Mapping[str, str] | None = None,
        max_silence_s: float = 30.0,
    ) -> None:
        """echo: gets every line that a worker logs; they go to standard error without it. environment: what workers
        get beside that of this process, such as the GPUs that they may see. max_silence_s: how long a process may hang
        before it counts as crashed (`WorkerConfig.max_silence_s`)."""
        self._max_silence_s = max_silence_s
        self._environment = dict(environment or {})
        self._echo = echo or _to_stderr
        self._stop_timeout_s = stop_timeout_s
        self._folder: Path | None = None
        self._statuses: dict[str, WorkerStatus] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._ending: set[str] = set()
        self._watchers: set[asyncio.Queue[WorkerStatus]] = set()

    async def start(self, config: WorkerConfig) -> str:
        """Begin to start a worker and return its replica id at once."""
        replica = uuid.uuid4().hex[:8]
        self._folder = self._folder or _private_folder()
        config = msgspec.structs.replace(
            config, socket=str(self._folder / f"{replica}.sock"), max_silence_s=self._max_silence_s
        )
        self._report(WorkerStatus(replica=replica, key=config.key, state=WorkerState.LOADING, socket=config.socket))
        self._keepers[replica] = asyncio.create_task(self._keep(replica, config))
        return replica

    async def stop(self, replica: str) -> None:
        """End a worker gracefully and forget it; also where somebody else does so, who may be cancelled meanwhile."""
        keeper = self._keepers.get(replica)
        if keeper is None:
            return
        if replica not in self._ending:
            self._ending.add(replica)  # once: a second time would cancel the orderly end
            keeper.cancel()
        await asyncio.wait({keeper})  # unlike awaiting it, this does not pass on that the caller is cancelled
        if not keeper.cancelled():
            keeper.exception()  # told by the worker's state
        if self._keepers.pop(replica, None) is not None:
            self._ending.discard(replica)
            self._change(replica, state=WorkerState.STOPPED, pid=None)
            del self._statuses[replica]

    async def close(self, timeout_s: float | None = None) -> None:
        """End every worker and remove the sockets; what takes longer than `timeout_s` is killed."""
        if timeout_s is not None:
            self._stop_timeout_s = timeout_s
        await asyncio.gather(*(self.stop(replica) for replica in list(self._keepers)))
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """The present state of every worker."""
        return tuple(self._statuses.values())

    async def watch(self) -> AsyncIterator[WorkerStatus]:
        """The present state of every worker, then each change."""
        queue: asyncio.Queue[WorkerStatus] = asyncio.Queue()
        for status in self.statuses():
            queue.put_nowait(status)
        self._watchers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def _keep(self, replica: str, config: WorkerConfig) -> None:
        name, backoff_s, failed_loads = config.key or "bare", FIRST_BACKOFF_S, 0
        while True:
            refused, ready_s = False, None
            try:
                process = await WorkerProcess.spawn(config, partial(self._hear, replica), self._environment)
            except (OSError, SubprocessError) as error:  # no memory, no open files, no such cores
                failure = WorkerFailure(code="worker_lost", message=f"the worker could not be started: {error}")
            else:
                try:
                    ready_s = await self._live(replica, process)
                finally:
                    await process.stop(self._stop_timeout_s)
                refused, failure = process.refused, process.failure()
            failed_loads = failed_loads + 1 if ready_s is None else 0
            if refused or failed_loads >= MAX_FAILED_LOADS:
                self._change(replica, state=WorkerState.FAILED, pid=None, failure=failure)
                return
            if ready_s is not None and ready_s > STABLE_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            log.error("worker %s (%s) died: %s; restarting in %g s", replica, name, failure.message, backoff_s)
            self._change(replica, state=WorkerState.LOADING, pid=None, restarts=self._statuses[replica].restarts + 1)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    async def _live(self, replica: str, process: WorkerProcess) -> float | None:
        """Follow a process from its start to its end; the seconds for which it was ready, None if it never was."""
        self._change(replica, pid=process.pid)
        if not await process.wait_ready():
            return None
        started = asyncio.get_running_loop().time()
        self._change(replica, state=WorkerState.READY, progress="")
        await process.wait()
        return asyncio.get_running_loop().time() - started

    def _hear(self, replica: str, line: str) -> None:
        if self._statuses[replica].state is WorkerState.LOADING:
            self._change(replica, progress=line)
        self._echo(line)

    def _change(self, replica: str, **changes: WorkerState | WorkerFailure | str | int | None) -> None:
        self._report(msgspec.structs.replace(self._statuses[replica], **changes))

    def _report(self, status: WorkerStatus) -> None:
        self._statuses[status.replica] = status
        for queue in self._watchers:
            queue.put_nowait(status)


def _private_folder() -> Path:
    """A new folder for sockets; where temporary files have a long path, as in some test runners, it is in /tmp."""
    is_short = len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_TMP
    return Path(tempfile.mkdtemp(prefix="harmonia-", dir=None if is_short else "/tmp"))


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
