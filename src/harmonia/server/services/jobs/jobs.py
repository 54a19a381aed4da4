"""Jobs: asked for, looked at, canceled, deleted. `job_runner` runs them, `job_reports` takes in what they say."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, HarmoniaError, InvalidRequestError
from harmonia.log import get_logger
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import CANCELED, COMPLETED, FAILED, TERMINAL, Job, JobArtifact, JobStage, progress_of
from harmonia.server.db.models import ComputePool
from harmonia.server.db.people import RolePermission, TeamMember, User
from harmonia.server.db.projects import Project
from harmonia.server.services.access import (
    Caller,
    by_id_or_key,
    require_anywhere,
    require_in_project,
    visible_projects,
)
from harmonia.server.services.audit import record
from harmonia.server.services.files import Files
from harmonia.server.services.graders.records import RecordCheck
from harmonia.server.services.jobs.filters import JobWish, condition
from harmonia.server.services.jobs.limits import check_limits
from harmonia.server.services.jobs.recipes import RecipeInfo, Recipes
from harmonia.server.services.jobs.runner import JobRunner
from harmonia.server.services.keys import checked_name
from harmonia.server.services.keyset import Keyset, Order, Page, PageWish
from harmonia.server.services.models.allotments import Allotments
from harmonia.server.services.models.devices import JOB, Pool
from harmonia.server.services.models.models import EXTERNAL, named_model
from harmonia.server.services.notifications.announcements import announce_job
from harmonia.server.services.notifications.notifications import Notifications

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A run that is wanted. None: no limit, or the default."""

    recipe: str
    project: str
    args: Mapping[str, Any]
    num_gpus: int
    name: str | None = None
    compute_pool: str | None = None
    max_ram_gb: float | None = None
    max_duration_s: int | None = None
    resume_artifact_id: uuid.UUID | None = None


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job with all that is shown of it."""

    job: Job
    project: Project | None
    """None: an import of a model."""
    creator: User | None
    recipe: RecipeInfo | None
    stages: Sequence[JobStage]
    artifacts: Sequence[JobArtifact]

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return progress_of(self.job, self.stages)


class Jobs:
    """What people do with jobs."""

    def __init__(
        self,
        database: Database,
        files: Files,
        recipes: Recipes,
        runner: JobRunner,
        notifications: Notifications,
        allotments: Allotments,
        records: RecordCheck,
    ) -> None:
        self._database = database
        self._records = records
        self._files = files
        self._allotments = allotments
        self._notifications = notifications
        self._recipes = recipes
        self._runner = runner

    async def create(self, caller: Caller, new: NewJob) -> JobInfo:
        """A job that waits for its devices. What cannot run is refused at once: arguments, devices, limits, and
        data sets with records that a grader outside would not take."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, new.project, "project:adapt")
            pool = await self._pool(session, new)
        check_limits(new, pool)
        recipe = await self._recipes.find(caller, new.project, new.recipe)
        if recipe is None:
            raise EntityNotFoundError(f"Recipe {new.recipe!r} does not exist", entity="recipe")
        files = await self._recipes.contents(recipe.content_hash)
        named = await self._recipes.probe.check(files, recipe.entrypoint, new.args)
        await self._records.check(caller, new.project, set(named.graders.values()), named.datasets)
        job = Job(
            project_id=access.project_id,
            name=_name(new.name),
            recipe_id=recipe.id,
            recipe_key=recipe.key,
            content_hash=recipe.content_hash,
            entrypoint=recipe.entrypoint,
            args=dict(new.args),
            compute_pool=pool.key,
            num_gpus=new.num_gpus,
            max_ram_gb=new.max_ram_gb,
            max_duration_s=new.max_duration_s,
            resume_artifact_id=new.resume_artifact_id,
            created_by=caller.user_id,
        )
        async with self._database.begin() as session:
            await require_in_project(session, caller, new.project, "project:adapt")
            await _require_models(session, caller, named.models)
            if new.resume_artifact_id is not None:
                await _require_checkpoint(session, access.project_id, new.resume_artifact_id)
            await self._recipes.keep(session, recipe)
            session.add(job)
            await session.flush()
            record(session, caller, "job.create", f"job/{job.id}", recipe=recipe.key, project=access.project_key)
        self._runner.wake()
        return await self.info(job)

    async def all(
        self, caller: Caller, wish: JobWish, page: PageWish, orders: Sequence[Order]
    ) -> tuple[Page, int, list[JobInfo]]:
        """A page of the jobs that the caller may see, the newest first unless ordered otherwise, and their number."""
        keyset = Keyset(
            {"created_at": Job.created_at, "name": Job.name, "status": Job.status, "id": Job.id},
            orders or [Order("created_at", descending=True)],
            "id",
        )
        async with self._database.read() as session:
            if wish.project is not None:
                await require_in_project(session, caller, wish.project, "project:read")
            where = (Job.deleted_at.is_(None), _may_see(caller), condition(wish))
            total = (await session.execute(select(func.count()).select_from(Job).where(*where))).scalar_one()
            found = await keyset.read(session, select(Job).where(*where), page)
        return found, total, await self._infos([row[0] for row in found.rows])

    async def find(self, caller: Caller, job_id: uuid.UUID) -> JobInfo | None:
        """One job; None if there is none that the caller may see."""
        async with self._database.read() as session:
            query = select(Job).where(Job.id == job_id, Job.deleted_at.is_(None), _may_see(caller))
            job = (await session.execute(query)).scalar_one_or_none()
        return None if job is None else await self.info(job)

    async def cancel(self, caller: Caller, job_id: uuid.UUID) -> JobInfo:
        """End a job; its process is stopped and its devices are free soon after. Nothing happens to a canceled one."""
        async with self._database.begin() as session:
            job = await self._changeable(session, caller, job_id)
            if job.status in (COMPLETED, FAILED):
                raise InvalidRequestError(f"job {job_id} has ended already: {job.status}", field="id")
            if job.status != CANCELED:
                job.status, job.ended_at = CANCELED, now_ms()
                record(session, caller, "job.cancel", f"job/{job_id}")
                await announce_job(session, self._notifications, job)
        await self._runner.cancel(job_id)
        return await self.info(job)

    async def rename(self, caller: Caller, job_id: uuid.UUID, name: str | None) -> JobInfo:
        """None leaves the name."""
        async with self._database.begin() as session:
            job = await self._changeable(session, caller, job_id)
            if name is not None:
                job.name = checked_name(name)
                record(session, caller, "job.rename", f"job/{job_id}", name=name)
        return await self.info(job)

    async def delete(self, caller: Caller, job_id: uuid.UUID) -> None:
        """Show a job that has ended no longer, and remove its files, its checkpoints among them. Models stay."""
        async with self._database.begin() as session:
            job = await self._changeable(session, caller, job_id)
            if job.status not in TERMINAL:
                raise InvalidRequestError(f"job {job_id} is {job.status}; cancel it before it is deleted", field="id")
            await _require_unneeded(session, job_id)
            made = select(JobArtifact.file).where(JobArtifact.job_id == job_id, JobArtifact.file.is_not(None))
            names = [str(name) for name in (await session.execute(made)).scalars()]
            job.deleted_at = now_ms()
            record(session, caller, "job.delete", f"job/{job_id}")
        await self._runner.files.forget(job_id)
        try:
            await self._files.delete(*names)
        except HarmoniaError as error:
            log.warning("files of job %s stay: %s", job_id, error.message)

    async def log_file(self, caller: Caller, job_id: uuid.UUID) -> Path:
        """Where the output of a job is; there is no file before it started."""
        if await self.find(caller, job_id) is None:
            raise _not_found(job_id)
        return self._runner.files.log(job_id)

    async def artifact(self, caller: Caller, artifact_id: uuid.UUID, project: str | None = None) -> JobArtifact | None:
        """Something that a job made; None if there is nothing of the kind that the caller may see."""
        async with self._database.read() as session:
            query = (
                select(JobArtifact)
                .join(Job, Job.id == JobArtifact.job_id)
                .join(Project, Project.id == Job.project_id)
                .where(
                    JobArtifact.id == artifact_id,
                    Job.deleted_at.is_(None),
                    Job.project_id.in_(visible_projects(caller)),
                )
            )
            if project is not None:
                query = query.where(by_id_or_key(Project.id, Project.key, project))
            found: JobArtifact | None = (await session.execute(query)).scalar_one_or_none()
            return found

    async def _pool(self, session: AsyncSession, new: NewJob) -> Pool:
        """The pool that was named, else the first that has as many devices, else the first."""
        pools = [pool for pool in self._allotments.pools.values() if JOB in pool.capabilities]
        if new.compute_pool is not None:
            query = select(ComputePool.key).where(by_id_or_key(ComputePool.id, ComputePool.key, new.compute_pool))
            key = (await session.execute(query)).scalar_one_or_none()
            pools = [pool for pool in pools if pool.key == key]
        if not pools:
            named = "there" if new.compute_pool is None else repr(new.compute_pool)
            known = ", ".join(pool.key for pool in self._allotments.pools.values() if JOB in pool.capabilities)
            message = f"{named} is no compute pool for jobs; pools for them: {known or 'none'}"
            raise InvalidRequestError(message, field="computePool")
        return next((pool for pool in pools if len(pool.devices) >= new.num_gpus), pools[0])

    async def _changeable(self, session: AsyncSession, caller: Caller, job_id: uuid.UUID) -> Job:
        job = await session.get(Job, job_id, with_for_update=True)
        if job is None or job.deleted_at is not None:
            raise _not_found(job_id)
        if job.project_id is not None:
            await require_in_project(session, caller, str(job.project_id), "project:adapt")
        elif job.created_by != caller.user_id:
            await require_anywhere(session, caller, "model:create")
        return job

    async def info(self, job: Job) -> JobInfo:
        """With what belongs to it, for who may see it."""
        return (await self._infos([job]))[0]

    async def _infos(self, jobs: Sequence[Job]) -> list[JobInfo]:
        """With what belongs to them, in a handful of queries however many they are."""
        ids = [job.id for job in jobs]
        async with self._database.read() as session:
            stages = select(JobStage).where(JobStage.job_id.in_(ids)).order_by(JobStage.place)
            by_stage = list((await session.execute(stages)).scalars())
            artifacts = select(JobArtifact).where(JobArtifact.job_id.in_(ids)).order_by(JobArtifact.created_at)
            by_artifact = list((await session.execute(artifacts)).scalars())
            users = select(User).where(User.id.in_({job.created_by for job in jobs}))
            creators = {user.id: user for user in (await session.execute(users)).scalars()}
            rows = select(Project).where(Project.id.in_({job.project_id for job in jobs if job.project_id}))
            projects = {project.id: project for project in (await session.execute(rows)).scalars()}
        recipes = await self._recipes.known([job.recipe_id for job in jobs if job.recipe_id is not None])
        return [
            JobInfo(
                job,
                None if job.project_id is None else projects[job.project_id],
                creators.get(job.created_by),
                None if job.recipe_id is None else recipes.get(job.recipe_id),
                [stage for stage in by_stage if stage.job_id == job.id],
                [artifact for artifact in by_artifact if artifact.job_id == job.id],
            )
            for job in jobs
        ]


def _may_see(caller: Caller) -> ColumnElement[bool]:
    """Jobs of the projects that the caller sees; imports, which have none, if they are the caller's or anybody's who
    may import too."""
    importer = (
        select(TeamMember.id)
        .join(RolePermission, RolePermission.role_id == TeamMember.role_id)
        .where(TeamMember.user_id == caller.user_id, RolePermission.permission == "model:create")
    )
    own = or_(Job.created_by == caller.user_id, importer.exists())
    return or_(Job.project_id.in_(visible_projects(caller)), and_(Job.project_id.is_(None), own))


async def _require_models(session: AsyncSession, caller: Caller, models: Mapping[str, str]) -> None:
    """`InvalidRequestError` for a key that the registry does not have.

    models: by field. Addresses and paths are for the worker to find.
    """
    for field, key in models.items():
        if "://" in key or key.startswith(("/", ".", "~")):
            continue
        try:
            row = await named_model(session, key, caller)
        except EntityNotFoundError as error:
            raise InvalidRequestError(f"{field}: {error.message}", field=f"args.{field}") from error
        if row.kind == EXTERNAL:
            raise InvalidRequestError(
                f"{field}: {key!r} is an external model, which jobs cannot load; name one of this server's own",
                field=f"args.{field}",
            )


async def _require_checkpoint(session: AsyncSession, project_id: uuid.UUID, artifact_id: uuid.UUID) -> None:
    query = (
        select(Job.status)
        .join(JobArtifact, JobArtifact.job_id == Job.id)
        .where(JobArtifact.id == artifact_id, JobArtifact.kind == "CHECKPOINT")
        .where(Job.project_id == project_id, Job.deleted_at.is_(None))
    )
    status = (await session.execute(query)).scalar_one_or_none()
    if status is None:
        raise InvalidRequestError(f"{artifact_id} is no checkpoint of this project's jobs", field="resumeArtifactId")
    if status not in (FAILED, CANCELED):
        raise InvalidRequestError(
            f"the job of checkpoint {artifact_id} is {status}; jobs that failed or were canceled can be resumed",
            field="resumeArtifactId",
        )


async def _require_unneeded(session: AsyncSession, job_id: uuid.UUID) -> None:
    """No job that has yet to end begins with a checkpoint of this one."""
    query = (
        select(Job.id)
        .join(JobArtifact, JobArtifact.id == Job.resume_artifact_id)
        .where(JobArtifact.job_id == job_id, Job.status.not_in(TERMINAL))
        .limit(1)
    )
    other = (await session.execute(query)).scalar_one_or_none()
    if other is not None:
        raise InvalidRequestError(f"job {other} resumes this one; wait for it, or cancel it", field="id")


def _name(name: str | None) -> str:
    return f"Run-{datetime.now(UTC):%Y-%m-%d-%H-%M}" if name is None else checked_name(name)


def _not_found(job_id: uuid.UUID) -> EntityNotFoundError:
    return EntityNotFoundError(f"Job {job_id} does not exist", entity="job")
