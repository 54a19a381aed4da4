"""What running jobs say of themselves: stages, progress, artifacts, checkpoints, and how they end."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, HarmoniaError, InvalidRequestError, PermissionDeniedError
from harmonia.log import get_logger
from harmonia.protocol.instances import SCHEME
from harmonia.server.db.base import MAX_KEY, now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import ACTIVE, Job, JobArtifact, JobStage
from harmonia.server.services.access import Caller
from harmonia.server.services.datasets.uploads import Uploads
from harmonia.server.services.files import Files
from harmonia.server.services.jobs.evaluations import add_missing_metrics, summarize
from harmonia.server.services.jobs.limits import explained
from harmonia.server.services.models.models import Models, NewModel, find_model
from harmonia.server.services.notifications.announcements import announce_job
from harmonia.server.services.notifications.notifications import Notifications

log = get_logger(__name__)

MAX_STAGES = 1000
MAX_ERROR = 100_000
"""Characters of a traceback; of a longer one the end is kept."""
KINDS = ("EVALUATION", "CUSTOM", "DATASET", "MODEL", "CHECKPOINT")


@dataclass(frozen=True, slots=True)
class StageWish:
    """A stage that will be."""

    name: str
    place: int
    parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgress:
    """How far a stage is; None leaves a value as it was."""

    name: str
    kind: str = "train"
    total: int | None = None
    processed: int | None = None
    monitoring_link: str | None = None
    checkpoints: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewArtifact:
    """Something that was made. session_id: the upload of its content."""

    id: uuid.UUID
    name: str
    kind: str
    details: dict[str, Any] = field(default_factory=dict)
    session_id: str | None = None


class Runner(Protocol):
    """What runs jobs."""

    async def may_go_on(self, job_id: uuid.UUID) -> None:
        """Raises where a job that told of a checkpoint or an error shall do nothing more."""


class JobReports:
    """Accepted from a job's own key and from whoever created it, as long as the job has not ended."""

    def __init__(
        self,
        database: Database,
        files: Files,
        uploads: Uploads,
        models: Models,
        notifications: Notifications,
        runner: Runner,
    ) -> None:
        self._database = database
        self._files = files
        self._uploads = uploads
        self._models = models
        self._notifications = notifications
        self._runner = runner

    async def register_stages(self, caller: Caller, job_id: uuid.UUID, stages: Sequence[StageWish]) -> None:
        """Name the stages. Those that were known keep their progress, those that are not named are gone."""
        names = [stage.name for stage in stages]
        if len(names) > MAX_STAGES or len(set(names)) < len(names):
            raise InvalidRequestError(
                f"stages need names of their own, and there are at most {MAX_STAGES}", field="stages"
            )
        async with self._open(caller, job_id) as (session, _):
            known = {stage.name: stage for stage in await _stages(session, job_id)}
            await session.execute(delete(JobStage).where(JobStage.job_id == job_id, JobStage.name.not_in(names)))
            for wish in stages:
                row = known.get(wish.name) or JobStage(job_id=job_id, name=_short(wish.name, "stageKey"))
                row.place, row.parent = wish.place, wish.parent
                session.add(row)

    async def progress(self, caller: Caller, job_id: uuid.UUID, report: StageProgress) -> None:
        """A registered stage went on."""
        async with self._open(caller, job_id) as (session, _):
            stages = {stage.name: stage for stage in await _stages(session, job_id)}
            stage = stages.get(report.name)
            if stage is None:
                known = ", ".join(stages) or "none"
                raise InvalidRequestError(
                    f"there is no stage {report.name!r} (registered: {known}); register it first", field="stageKey"
                )
            for name, value in (("total", report.total), ("processed", report.processed)):
                if value is not None and not 0 <= value < 2**63:
                    raise InvalidRequestError(f"{name} samples must be at least 0, got {value}", field="info")
            stage.kind = report.kind
            stage.total = stage.total if report.total is None else report.total
            stage.processed = stage.processed if report.processed is None else report.processed
            stage.monitoring_link = report.monitoring_link or stage.monitoring_link
            stage.checkpoints = stage.checkpoints if report.checkpoints is None else list(report.checkpoints)
            stage.started_at = stage.started_at or now_ms()
            is_done = stage.total is not None and (stage.processed or 0) >= stage.total
            stage.ended_at = stage.ended_at or now_ms() if is_done else None

    async def heartbeat(self, caller: Caller, job_id: uuid.UUID) -> None:
        """The job is alive."""
        async with self._open(caller, job_id) as (_, job):
            job.heartbeat_at = now_ms()

    async def complete(self, caller: Caller, job_id: uuid.UUID) -> None:
        """The job succeeded."""
        async with self._open(caller, job_id) as (session, job):
            job.status, job.ended_at = "COMPLETED", now_ms()
            for stage in await _stages(session, job_id):
                stage.ended_at = stage.ended_at or job.ended_at
            await announce_job(session, self._notifications, job)

    async def failed(self, caller: Caller, job_id: uuid.UUID, error: str) -> None:
        """The job failed, with its traceback."""
        await self._runner.may_go_on(job_id)  # what fails while the server stops may fail because of that
        async with self._open(caller, job_id) as (session, job):
            job.status, job.ended_at, job.error = "FAILED", now_ms(), explained(job, error[-MAX_ERROR:])
            await announce_job(session, self._notifications, job)

    async def artifact(self, caller: Caller, job_id: uuid.UUID, new: NewArtifact) -> None:
        """Keep an artifact, with its content if it was uploaded. A model becomes one of the registry."""
        if new.kind not in KINDS:
            raise InvalidRequestError(f"{new.kind!r} is no kind of artifacts", field="kind")
        async with self._open(caller, job_id) as (session, _):
            await _require_free(session, job_id, new.id)
        file = None if new.session_id is None else await self._uploads.take(caller, new.session_id)
        problem, found = None, []
        if new.kind == "MODEL":
            problem = await self._register_model(job_id, str(new.details.get("model_key") or new.name))
        if new.kind == "EVALUATION" and file is not None:
            found = await summarize(self._files.get(file))
        async with self._open(caller, job_id) as (session, job):
            assert job.project_id is not None
            await add_missing_metrics(session, job.project_id, found)
            row = await session.get(JobArtifact, new.id) or JobArtifact(id=new.id, job_id=job_id)
            row.name, row.kind = _short(new.name, "name"), new.kind
            row.status = "READY" if problem is None else "ERROR"
            row.details = new.details if problem is None else {**new.details, "error": problem}
            row.file, row.results = file or row.file, found
            session.add(row)
        if new.kind == "CHECKPOINT":
            await self._runner.may_go_on(job_id)

    async def _register_model(self, job_id: uuid.UUID, key: str) -> str | None:
        """Why the registry did not take it; None if it did, or has it already."""
        async with self._database.read() as session:
            if await find_model(session, key) is not None:
                return None
        try:
            await self._models.register(None, NewModel(path=SCHEME + key, name=key, key=key, job_id=job_id))
        except HarmoniaError as error:
            log.warning("the model %r of job %s is not in the registry: %s", key, job_id, error.message)
            return error.message
        return None

    @asynccontextmanager
    async def _open(self, caller: Caller, job_id: uuid.UUID) -> AsyncIterator[tuple[AsyncSession, Job]]:
        """A transaction with a job that runs and may be reported on."""
        async with self._database.begin() as session:
            job = await session.get(Job, job_id, with_for_update=True)
            is_creator = job is not None and caller.job_id is None and caller.user_id == job.created_by
            if job is None or job.deleted_at is not None:
                raise EntityNotFoundError(f"Job {job_id} does not exist", entity="job")
            if caller.job_id != job_id and not is_creator:
                raise PermissionDeniedError(f"only job {job_id} itself and its creator may report on it")
            if job.project_id is None:
                raise InvalidRequestError(f"job {job_id} imports a model; nobody else tells of it", field="jobId")
            if job.status not in ACTIVE:
                raise InvalidRequestError(f"job {job_id} has ended already: {job.status}", field="jobId")
            yield session, job


async def _stages(session: AsyncSession, job_id: uuid.UUID) -> list[JobStage]:
    return list((await session.execute(select(JobStage).where(JobStage.job_id == job_id))).scalars())


async def _require_free(session: AsyncSession, job_id: uuid.UUID, artifact_id: uuid.UUID) -> None:
    """An artifact that is registered again replaces itself, never one of another job."""
    row = await session.get(JobArtifact, artifact_id)
    if row is not None and row.job_id != job_id:
        raise InvalidRequestError(f"artifact {artifact_id} belongs to another job", field="artifactId")


def _short(text: str, name: str) -> str:
    if not text or len(text) > MAX_KEY:
        raise InvalidRequestError(f"{name} has 1 to {MAX_KEY} characters, got {len(text)}", field=name)
    return text
