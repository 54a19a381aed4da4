"""Runs jobs: each waits until its pool has devices for it, then gets a worker and a process of its own.

What was accepted is in the database, so that a restart loses nothing: jobs that waited still wait, and those that ran
wait again and go on from their last checkpoint.
"""

from __future__ import annotations

import asyncio
import uuid

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.config.control import ControlConfig
from harmonia.errors import HarmoniaError, UnavailableError
from harmonia.log import get_logger
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import TERMINAL, Job, JobArtifact
from harmonia.server.db.people import ApiKey
from harmonia.server.db.projects import Project
from harmonia.server.services import processes
from harmonia.server.services.access import key_row, new_api_key
from harmonia.server.services.jobs.claims import claim, still_runs
from harmonia.server.services.jobs.files import JobFiles
from harmonia.server.services.jobs.process import JOB_ID, JobProcess, Launch
from harmonia.server.services.models.allotments import Allotments
from harmonia.server.services.models.devices import JOB, Device
from harmonia.server.services.notifications.announcements import announce_job
from harmonia.server.services.notifications.notifications import Notifications

log = get_logger(__name__)

_LOOK_AGAIN_S = 10.0
_RECIPE = Job.recipe_id.is_not(None)
"""Imports of models are not run here."""
_LEFTOVERS_S = 10.0
"""For so long what an earlier server left behind may take to end once it was killed."""


class JobRunner:
    """Starts what waits, watches what runs."""

    def __init__(
        self, config: ControlConfig, database: Database, notifications: Notifications, allotments: Allotments
    ) -> None:
        self.files = JobFiles(config)
        self._config = config
        self._database = database
        self._notifications = notifications
        self._allotments = allotments
        self._running: dict[uuid.UUID, JobProcess] = {}
        self._tasks: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._told: set[uuid.UUID] = set()
        """Waiting jobs whose log says what they wait for."""
        self._is_stopping = False
        self._news = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Clean up after an earlier end, and begin with what waits."""
        await self._recover()
        await self._tidy()
        self._allotments.listen(self._news.set)
        self._loop = asyncio.create_task(self._run())

    async def put_off(self) -> None:
        """The server is about to stop: let trainings write a checkpoint, for a bounded time, and end every job that
        runs. They go on after the next start."""
        await self._end_loop()
        asked = [task for job_id, task in self._tasks.items() if self.files.ask_for_checkpoint(job_id)]
        if asked:
            log.info("%d jobs write a checkpoint, for at most %g s", len(asked), self._config.jobs.stop_seconds)
            await asyncio.wait(asked, timeout=self._config.jobs.stop_seconds)
        await self.close()

    async def close(self) -> None:
        """End every job that runs; each waits for the next start."""
        await self._end_loop()
        for process in self._running.values():
            process.put_off()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def wake(self) -> None:
        """There is a new job."""
        self._news.set()

    async def cancel(self, job_id: uuid.UUID) -> None:
        """Stop a job's process if there is one; the database says already that it is canceled."""
        running = self._running.get(job_id)
        if running is not None:
            running.cancel()
        elif job_id not in self._tasks:
            await self.files.finish(job_id, is_complete=False)

    async def may_go_on(self, job_id: uuid.UUID) -> None:
        """Called before a job may do what comes after a checkpoint or an error: while the server stops it may not.

        Errors: UnavailableError once the job's process has ended.
        """
        task, process = self._tasks.get(job_id), self._running.get(job_id)
        if self._is_stopping and task is not None and process is not None:
            process.put_off()
            await asyncio.wait([task])
            raise UnavailableError("the server stops; the job goes on after its next start")

    def worker_socket(self, job_id: uuid.UUID) -> str | None:
        """Where the worker of a running job listens; None if it has none now."""
        running = self._running.get(job_id)
        return None if running is None else running.worker_socket

    # ------------------------------------------------------------------------------------------ after another server

    async def _recover(self) -> None:
        """No job may run now: end what an earlier server left behind, and let it begin again."""
        async with self._database.read() as session:
            lost = list((await session.execute(select(Job.id).where(Job.status == "RUNNING", _RECIPE))).scalars())
        ended = await processes.end_leftovers(JOB_ID, {str(job_id) for job_id in lost}, _LEFTOVERS_S)
        if ended:
            log.warning("%d processes of jobs had outlived their server and were ended", ended)
        async with self._database.begin() as session:
            for job in (await session.execute(select(Job).where(Job.status == "RUNNING", _RECIPE))).scalars():
                await self._restart(session, job)
            await session.execute(
                update(ApiKey)
                .where(ApiKey.job_id.is_not(None), ApiKey.revoked_at.is_(None))
                .values(revoked_at=now_ms())
            )

    async def _restart(self, session: AsyncSession, job: Job) -> None:
        """A job that ran when its server died waits again, unless that happens too often."""
        most = self._config.jobs.max_restarts
        if job.restarts >= most:
            await self._fail(
                session,
                job,
                f"the server died {job.restarts + 1} times while the job ran, and a job is restarted {most} times at "
                "most (ADAPTIVE_JOBS__MAX_RESTARTS); resume it at a checkpoint, or run it again",
            )
            return
        job.status, job.restarts = "PENDING", job.restarts + 1
        what = f"the server died while the job ran; it starts again (restart {job.restarts} of {most})"
        log.warning("job %s: %s", job.id, what)
        self.files.note(job.id, what)

    async def _tidy(self) -> None:
        """Remove what a server that died had yet to remove."""
        known = self.files.known()
        async with self._database.read() as session:
            found = {row.id: row for row in (await session.execute(select(Job).where(Job.id.in_(known)))).scalars()}
        for job_id in known:
            job = found.get(job_id)
            if job is None:
                continue  # of another database
            if job.deleted_at is not None:
                await self.files.forget(job_id)
            elif job.status in TERMINAL and not self.files.is_finished(job_id):
                await self.files.finish(job_id, is_complete=job.status == "COMPLETED")

    # ----------------------------------------------------------------------------------------------- in the background

    async def _end_loop(self) -> None:
        """Start nothing more."""
        self._is_stopping = True
        self._news.set()
        if self._loop is not None:
            await asyncio.wait([self._loop])

    async def _run(self) -> None:
        while not self._is_stopping:
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
            query = select(Job).where(Job.status == "PENDING", _RECIPE).order_by(Job.created_at, Job.id)
            waiting = list((await session.execute(query)).scalars())
        self._told &= {job.id for job in waiting}
        full: set[str] = set()
        for job in waiting:
            pool = str(job.compute_pool)
            # Whoever waits longest goes first, so nobody overtakes in a pool.
            if self._is_stopping or pool in full or job.id in self._tasks:
                continue
            if not self._fits(job):
                await self._refuse(job)
            elif (devices := self._allotments.take(job.id, pool, job.num_gpus)) is None:
                full.add(pool)
                self._tell_wait(job)
            elif await claim(self._database, job.id):
                self._tasks[job.id] = asyncio.create_task(self._work(job, devices))
            else:
                self._allotments.release(job.id)

    def _fits(self, job: Job) -> bool:
        """Whether its pool is still there, and large enough: settings may have changed since it was accepted."""
        pool = self._allotments.pools.get(str(job.compute_pool))
        return pool is not None and JOB in pool.capabilities and len(pool.devices) >= job.num_gpus

    async def _refuse(self, job: Job) -> None:
        known = ", ".join(f"{key} ({len(pool.devices)})" for key, pool in self._allotments.pools.items())
        async with self._database.begin() as session:
            row = await session.get(Job, job.id, with_for_update=True)
            if row is not None and row.status == "PENDING":
                await self._fail(
                    session,
                    row,
                    f"no compute pool {job.compute_pool!r} takes jobs with {job.num_gpus} devices any more; the pools "
                    f"of this server, with their devices, are {known}: run it again in one of them",
                )

    def _tell_wait(self, job: Job) -> None:
        """Once for each job, in its log."""
        if job.id in self._told:
            return
        self._told.add(job.id)
        held = ", ".join(item.name for item in self._allotments.holdings(str(job.compute_pool))) or "earlier jobs"
        self.files.note(job.id, f"waits for {job.num_gpus} of the devices of pool {job.compute_pool}, held by {held}")

    async def _work(self, job: Job, devices: tuple[Device, ...]) -> None:
        """One job from its start to its end, whatever happens."""
        error: str | None = None
        try:
            launch = await self._launch(job, devices)
            process = self._running[job.id] = JobProcess(self._config, launch, self.files)
            if self._is_stopping:
                process.put_off()
            if await still_runs(self._database, job.id):
                error = await process.run()
        except HarmoniaError as failure:
            error = failure.message
        except OSError as failure:
            error = f"the job could not be started: {failure}"
        except Exception:
            log.exception("job %s could not be run", job.id)
            error = "the server met an error of its own while it ran the job; its log has the trace"
        try:
            while not await self._settled(job, error):
                await asyncio.sleep(_LOOK_AGAIN_S)
        finally:
            self._running.pop(job.id, None)
            self._tasks.pop(job.id, None)
            self._allotments.release(job.id)

    async def _settled(self, job: Job, error: str | None) -> bool:
        """Whether the end of a job could be noted, be it to begin again or because it has not told of it itself."""
        try:
            status = await self._settle(job, error)
        except (SQLAlchemyError, HarmoniaError, OSError) as failure:
            log.error("how job %s ended cannot be noted: %s", job.id, failure)
            return self._is_stopping
        if status in TERMINAL:
            await self.files.finish(job.id, is_complete=status == "COMPLETED")
        return True

    async def _settle(self, job: Job, error: str | None) -> str | None:
        """Its status from now on; None: it is gone. Its key is refused."""
        process = self._running.get(job.id)
        async with self._database.begin() as session:
            row = await session.get(Job, job.id, with_for_update=True)
            if row is not None and row.status == "RUNNING" and process is not None and process.is_put_off:
                row.status = "PENDING"
                self.files.note(job.id, "the server stops; the job goes on after its next start")
            elif row is not None and row.status == "RUNNING":
                await self._fail(session, row, error or "the job ended without a word")
            await session.execute(
                update(ApiKey).where(ApiKey.job_id == job.id, ApiKey.revoked_at.is_(None)).values(revoked_at=now_ms())
            )
            return None if row is None else row.status

    async def _fail(self, session: AsyncSession, job: Job, error: str) -> None:
        log.warning("job %s: %s", job.id, error)
        job.status, job.ended_at, job.error = "FAILED", now_ms(), error
        await announce_job(session, self._notifications, job)

    async def _launch(self, job: Job, devices: tuple[Device, ...]) -> Launch:
        """With a key that is valid for this job while it runs, and the checkpoint from which it goes on."""
        api_key = new_api_key()
        async with self._database.begin() as session:
            session.add(key_row(job.created_by, api_key, job_id=job.id))
            project = (await session.execute(select(Project.key).where(Project.id == job.project_id))).scalar_one()
            own = (
                select(JobArtifact.id)
                .where(JobArtifact.job_id == job.id, JobArtifact.kind == "CHECKPOINT")
                .order_by(JobArtifact.created_at.desc(), JobArtifact.id.desc())
                .limit(1)
            )
            newest = (await session.execute(own)).scalar_one_or_none()
        checkpoint = newest or job.resume_artifact_id
        if checkpoint is not None:
            self.files.note(job.id, f"goes on from checkpoint {checkpoint}")
        return Launch(job, project, api_key, devices[0].place if devices else None, checkpoint)
