"""Runs jobs: each waits until its pool has a device for it, then gets a worker and a process of its own.

What was accepted is in the database, so that a restart loses nothing: jobs that waited still wait, and those that ran
are marked as failed, since their workers ended with this server.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.config.control import ControlConfig
from harmonia.errors import HarmoniaError
from harmonia.log import get_logger
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import Job
from harmonia.server.db.models import ComputePool
from harmonia.server.db.people import ApiKey
from harmonia.server.db.projects import Project
from harmonia.server.services.access import key_row, new_api_key
from harmonia.server.services.jobs.process import JobProcess, Launch
from harmonia.server.services.notifications.announcements import announce_job
from harmonia.server.services.notifications.notifications import Notifications

log = get_logger(__name__)

_RESTARTED = "the server ended while the job ran, and its worker with it; run it again, or resume it at a checkpoint"
_LOOK_AGAIN_S = 10.0


def pool_capacity(pool: ComputePool) -> int:
    """How many devices of a pool are for jobs. A single device is for serving and for one job at a time."""
    return 1 if pool.num_devices == 1 else pool.num_devices - pool.num_inference


class JobRunner:
    """Starts what waits, watches what runs."""

    def __init__(self, config: ControlConfig, database: Database, notifications: Notifications) -> None:
        self._config = config
        self._database = database
        self._notifications = notifications
        self._folder = config.folder / "jobs"
        self._running: dict[uuid.UUID, JobProcess] = {}
        self._tasks: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._slots: dict[uuid.UUID, tuple[str, int]] = {}
        """The pool and the device that each running job holds."""
        self._news = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Clean up after an earlier end, and begin with what waits."""
        await self._recover()
        self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End every job that runs; they are marked as failed, with the reason."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._recover()

    def wake(self) -> None:
        """There is a new job, or a device is free."""
        self._news.set()

    def cancel(self, job_id: uuid.UUID) -> None:
        """Stop a job's process if there is one; the database says already that it is canceled."""
        running = self._running.get(job_id)
        if running is not None:
            running.cancel()

    def worker_socket(self, job_id: uuid.UUID) -> str | None:
        """Where the worker of a running job listens; None if it has none now."""
        running = self._running.get(job_id)
        return None if running is None else running.worker_socket

    def log_file(self, job_id: uuid.UUID) -> Path:
        """What a job and its worker wrote."""
        return self._folder / str(job_id) / "log.txt"

    # ----------------------------------------------------------------------------------------------- in the background

    async def _recover(self) -> None:
        """No job runs now: end what an earlier server left behind, and say so."""
        async with self._database.begin() as session:
            lost = list((await session.execute(select(Job).where(Job.status == "RUNNING"))).scalars())
            for job in lost:
                log.warning("job %s: %s", job.id, _RESTARTED)
                await self._fail(session, job, _RESTARTED)
            await session.execute(
                update(ApiKey)
                .where(ApiKey.job_id.is_not(None), ApiKey.revoked_at.is_(None))
                .values(revoked_at=now_ms())
            )

    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                await self._start_waiting()
            except Exception:
                log.exception("waiting jobs could not be started; trying again in %g s", _LOOK_AGAIN_S)
            try:
                await asyncio.wait_for(self._news.wait(), _LOOK_AGAIN_S)
            except TimeoutError:
                continue

    async def _start_waiting(self) -> None:
        async with self._database.read() as session:
            query = select(Job).where(Job.status == "PENDING").order_by(Job.created_at, Job.id)
            waiting = list((await session.execute(query)).scalars())
            pools = {pool.key: pool for pool in (await session.execute(select(ComputePool))).scalars()}
        full: set[str] = set()
        for job in waiting:
            pool = pools.get(job.compute_pool or "")
            # Whoever waits longest goes first, so nobody overtakes in a pool.
            if pool is None or pool.key in full or job.id in self._tasks:
                continue
            device = self._free_device(pool) if job.num_gpus else None
            if job.num_gpus and device is None:
                full.add(pool.key)
            elif await self._claim(job):
                if device is not None:
                    self._slots[job.id] = (pool.key, device)
                self._tasks[job.id] = asyncio.create_task(self._work(job, _visible(pool, device)))

    def _free_device(self, pool: ComputePool) -> int | None:
        """A device that no job holds, from 0 among those for jobs."""
        held = {device for key, device in self._slots.values() if key == pool.key}
        return next((device for device in range(pool_capacity(pool)) if device not in held), None)

    async def _claim(self, job: Job) -> bool:
        """Whether it still waits, and now is ours."""
        async with self._database.begin() as session:
            found = await session.execute(
                update(Job)
                .where(Job.id == job.id, Job.status == "PENDING")
                .values(status="RUNNING", started_at=now_ms())
                .returning(Job.id)
            )
            return found.first() is not None

    async def _work(self, job: Job, device: str | None) -> None:
        """One job from its start to its end, whatever happens."""
        error: str | None = None
        try:
            api_key, project = await self._issue_key(job)
            process = JobProcess(self._config, Launch(job, project, api_key, device), self._folder / str(job.id))
            self._running[job.id] = process
            if await self._still_runs(job):
                error = await process.run()
        except HarmoniaError as failure:
            error = failure.message
        except OSError as failure:
            error = f"the job could not be started: {failure}"
        except asyncio.CancelledError:
            error = "the server was shut down while the job ran; run it again, or resume it at a checkpoint"
        except Exception:
            log.exception("job %s could not be run", job.id)
            error = "the server met an error of its own while it ran the job; its log has the trace"
        finally:
            self._running.pop(job.id, None)
            self._slots.pop(job.id, None)
            self._tasks.pop(job.id, None)
            self.wake()
        await self._settle(job, error)

    async def _still_runs(self, job: Job) -> bool:
        """Whether nobody has canceled it since it was claimed."""
        async with self._database.read() as session:
            status = (await session.execute(select(Job.status).where(Job.id == job.id))).scalar_one()
        return status == "RUNNING"

    async def _settle(self, job: Job, error: str | None) -> None:
        """Note the end of a job that has not told of it itself, and let its key be refused."""
        async with self._database.begin() as session:
            row = await session.get(Job, job.id, with_for_update=True)
            if row is not None and row.status == "RUNNING":
                await self._fail(session, row, error or "the job ended without a word")
            await session.execute(
                update(ApiKey).where(ApiKey.job_id == job.id, ApiKey.revoked_at.is_(None)).values(revoked_at=now_ms())
            )

    async def _fail(self, session: AsyncSession, job: Job, error: str) -> None:
        job.status, job.ended_at, job.error = "FAILED", now_ms(), error
        await announce_job(session, self._notifications, job)

    async def _issue_key(self, job: Job) -> tuple[str, str]:
        """A key that is valid for this job while it runs, and the key of its project."""
        api_key = new_api_key()
        async with self._database.begin() as session:
            session.add(key_row(job.created_by, api_key, job_id=job.id))
            project = (await session.execute(select(Project.key).where(Project.id == job.project_id))).scalar_one()
        return api_key, project


def _visible(pool: ComputePool, device: int | None) -> str | None:
    """What the job's worker may see of the GPUs, those that serve left out; None: it computes on the CPU."""
    if device is None or pool.device_types == "CPU":
        return None
    place = device if pool.num_devices == 1 else pool.num_inference + device
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(place) if chosen is None else chosen.split(",")[place].strip()
