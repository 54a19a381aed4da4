"""One job as it runs: a worker for its models, and the process of its recipe, which reaches the worker through the
gateway of this server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import uuid
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import msgspec

from harmonia import tracing
from harmonia.config import EngineConfig, WorkerConfig
from harmonia.config.control import ControlConfig
from harmonia.config.worker import CPU
from harmonia.errors import UnavailableError
from harmonia.fleet import LocalFleet
from harmonia.fleet.process import exited
from harmonia.protocol.fleet import WorkerState
from harmonia.server.db.jobs import Job
from harmonia.server.services import processes
from harmonia.server.services.jobs.files import JobFiles
from harmonia.server.services.jobs.limits import explained, over_memory, over_time

MODULE = "harmonia.client.recipe"
GATEWAY = "/api/v1/ws"
JOB_ID = "ADAPTIVE_JOB_ID"
"""The variable by which the processes of a job are known."""
_KEY = "ADAPTIVE_API_KEY"
_BLOCK_BYTES = 64 << 10
_PATIENCE_S = 5.0
"""For so long a job that is stopped may clean up."""
_TAIL_LINES = 20
_LOOK_AGAIN_S = 1.0
_MAX_LIMIT = 2**62
"""Bytes; the system's numbers for limits end there."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A job that is to run."""

    job: Job
    project: str
    """Its project's key."""
    api_key: str = field(repr=False)
    place: str | None = None
    """The device of its worker, as `WorkerConfig.place` names it; None: it asked for none, so the CPU computes."""
    checkpoint: uuid.UUID | None = None
    """With what it goes on."""


class JobProcess:
    """A worker and a process, from their start to their end."""

    def __init__(self, config: ControlConfig, launch: Launch, files: JobFiles) -> None:
        self._config = config
        self._launch = launch
        self._files = files
        self._folder = files.folder(launch.job.id)
        self._canceled = asyncio.Event()
        self.worker_socket: str | None = None
        """Where its worker listens, while it does."""
        self.is_put_off = False
        """Whether it ends to go on another time."""

    def cancel(self) -> None:
        """Let `run` end."""
        self._canceled.set()

    def put_off(self) -> None:
        """Let `run` end at once, to go on another time."""
        self.is_put_off = True
        self._canceled.set()

    async def run(self) -> str | None:
        """Run it to its end. Returns why it ended if the recipe cannot have said it itself.

        Errors: HarmoniaError when the worker cannot be started.
        """
        job_id = self._launch.job.id
        await asyncio.to_thread(self._files.work(job_id).mkdir, parents=True, exist_ok=True)
        self._files.drop_requests(job_id)
        log_file = _Log(self._files.log(job_id), self._config.jobs.max_log_bytes)
        with log_file as log, tracing.root("job", self._told()):
            silence_s = self._config.http_client.max_silence_secs
            fleet = LocalFleet(log.line, environment={JOB_ID: str(job_id)}, max_silence_s=silence_s)
            try:
                if not await self._start_worker(fleet):
                    return None
                return await self._run_recipe(log)
            finally:
                self.worker_socket = None
                await fleet.close()

    def _told(self) -> tracing.Attributes:
        job, project = self._launch.job, self._launch.project
        return {"harmonia.job": str(job.id), "harmonia.recipe": job.recipe_key, "harmonia.project": project}

    async def _start_worker(self, fleet: LocalFleet) -> bool:
        """False if the job was canceled meanwhile."""
        place = self._launch.place or CPU
        engine = EngineConfig(device="cpu" if place.partition(":")[0] == CPU else "auto")
        config = WorkerConfig(registry=str(self._config.registry), engine=engine, place=place)
        await fleet.start(config)
        ready, canceled = asyncio.create_task(_ready(fleet)), asyncio.create_task(self._canceled.wait())
        try:
            await asyncio.wait((ready, canceled), return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                self.worker_socket = ready.result()
            return self.worker_socket is not None
        finally:
            for task in (ready, canceled):
                task.cancel()
            await asyncio.gather(ready, canceled, return_exceptions=True)

    async def _run_recipe(self, log: _Log) -> str | None:
        job = self._launch.job
        arguments = self._files.arguments(job.id)
        arguments.write_bytes(msgspec.json.encode(job.args))
        process = await processes.start(MODULE, folder=self._folder, variables=self._variables(arguments), reads=True)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        reading = asyncio.create_task(log.copy(process.stdout))
        canceled, ended = asyncio.create_task(self._canceled.wait()), asyncio.create_task(exited(process))
        greedy = asyncio.create_task(_outgrown(process.pid, job.max_ram_gb))
        try:
            _limit_memory(process.pid, job.max_ram_gb)
            done, _ = await asyncio.wait(
                (canceled, ended, greedy), timeout=job.max_duration_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            # One that is put off gets no time: what it would say while it ends is not so.
            await processes.stop(process, 0.0 if self.is_put_off else _PATIENCE_S)
            # What has left its group would hold its output and its memory; only this run has its key.
            await processes.end_leftovers(_KEY, {self._launch.api_key}, _PATIENCE_S)
            await asyncio.wait((reading,), timeout=_PATIENCE_S)
            for task in (reading, canceled, greedy):
                task.cancel()
            await asyncio.gather(reading, canceled, ended, greedy, return_exceptions=True)
        if not done:
            return over_time(job)
        if ended in done:
            return explained(job, _ending(process.returncode or 0, log.tail()))
        return None if canceled in done else over_memory(job)

    def _variables(self, arguments: Path) -> dict[str, str]:
        job, url = self._launch.job, self._config.server.url
        more = {
            "ADAPTIVE_HARMONY_URL": f"ws{url.removeprefix('http')}{GATEWAY}",
            "ADAPTIVE_CONTROL_PLANE_URL": url,
            "ADAPTIVE_CONTROL_PLANE_API_TOKEN": self._launch.api_key,
            _KEY: self._launch.api_key,
            "ADAPTIVE_NUM_GPUS": str(job.num_gpus),
            "ADAPTIVE_NAME": job.name,
            "ADAPTIVE_RECIPE_NAME": job.recipe_key,
            "ADAPTIVE_RECIPE_KEY": job.recipe_key,
            "ADAPTIVE_ENTRYPOINT": job.entrypoint,
            JOB_ID: str(job.id),
            "ADAPTIVE_PROJECT": self._launch.project,
            "ADAPTIVE_WORKING_DIR": str(self._files.work(job.id)),
            "RECIPE_CHECKPOINTS_DIR": str(self._files.checkpoints(job.id)),
            "ADAPTIVE_USER_INPUT_FILE": str(arguments),
            "ADAPTIVE_LOG_LEVEL": "INFO",
            "CUDA_VISIBLE_DEVICES": "",  # models are on the worker
        }
        if trace := tracing.traceparent():
            more["TRACEPARENT"] = trace
        if job.compute_pool:
            more["ADAPTIVE_COMPUTE_POOL"] = job.compute_pool
        if self._launch.checkpoint is not None:
            more["ADAPTIVE_RESUME_CHECKPOINT_ARTIFACT_ID"] = str(self._launch.checkpoint)
        return processes.environment(self._folder, self._config.folder / "cache", more)


class _Log:
    """The file with a job's output, up to a size."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._left = max_bytes
        self._file: FileIO | None = None

    def __enter__(self) -> _Log:
        self._file = self._path.open("ab", buffering=0)
        self._left -= self._file.tell()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def line(self, text: str) -> None:
        """Write a line of the worker's."""
        self._write(f"{text}\n".encode())

    async def copy(self, source: asyncio.StreamReader) -> None:
        """Write everything that comes."""
        while block := await source.read(_BLOCK_BYTES):
            self._write(block)

    def tail(self) -> str:
        """The last lines."""
        with self._path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _BLOCK_BYTES))
            lines = file.read(_BLOCK_BYTES).decode(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def _write(self, block: bytes) -> None:
        if self._file is None or self._left <= 0:
            return
        # What a full disk does not take is lost: who stopped reading for it would stop the job.
        with contextlib.suppress(OSError):
            self._file.write(block[: self._left])
            self._left -= len(block)
            if self._left <= 0:
                self._file.write(b"\n[the log ends here: it is as long as it may be, ADAPTIVE_JOBS__MAX_LOG_BYTES]\n")


async def _ready(fleet: LocalFleet) -> str:
    async for status in fleet.watch():
        if status.state is WorkerState.READY:
            return status.socket
        if status.state is WorkerState.FAILED and status.failure is not None:
            raise status.failure.error()
    raise UnavailableError("the worker is gone")


def _limit_memory(pid: int, gigabytes: float | None) -> None:
    """Of the data that the process makes, not of its addresses: libraries map far more than they use."""
    if gigabytes is None or not hasattr(resource, "prlimit"):
        return
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        _, most = resource.prlimit(pid, resource.RLIMIT_DATA)
        limit = round(min(gigabytes * 2**30, _MAX_LIMIT if most == resource.RLIM_INFINITY else most))
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))


async def _outgrown(leader: int, gigabytes: float | None) -> None:
    """Returns once a process and what it started hold more memory than they may together."""
    if gigabytes is None:
        await asyncio.Event().wait()
        return
    while await asyncio.to_thread(processes.memory_of_group, leader) <= gigabytes * 2**30:
        await asyncio.sleep(_LOOK_AGAIN_S)


def _ending(code: int, tail: str) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the job's process ended with {how} before it told how the job ended:\n{tail}"
