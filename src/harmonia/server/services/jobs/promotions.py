"""Checkpoints that become models of the registry: a job without a recipe, done by this server itself.

The files of a checkpoint are linked, not copied, where the disk allows it: they are never written again, and stay when
the checkpoint goes. What was accepted is in the job's row, so that a restart goes on where it was.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, HarmoniaError, InvalidRequestError
from harmonia.log import get_logger
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import ACTIVE, Job, JobArtifact, JobStage
from harmonia.server.services.access import Caller, require_in_project
from harmonia.server.services.audit import record
from harmonia.server.services.jobs.claims import until_noted
from harmonia.server.services.jobs.imports import INCOMING
from harmonia.server.services.keys import checked_name, key_from
from harmonia.server.services.models.models import Models, NewModel, find_model, registry_entry, require_free_key
from harmonia.server.services.notifications.announcements import announce_job
from harmonia.server.services.notifications.notifications import Notifications

log = get_logger(__name__)

PROMOTION = "promote_checkpoint"
"""Stands in such jobs for the key of a recipe."""
STAGE = "promote (models)"
_LEFT_OUT = ("optimizer.",)
"""Beginnings of files that only the training goes on with."""


@dataclass(frozen=True, slots=True)
class PromotedModel:
    """model_key: of a model of the training, as the checkpoint names it. name: of the model that shall be made."""

    model_key: str
    name: str


class Promotions:
    """Makes models of checkpoints."""

    def __init__(self, registry: Path, database: Database, models: Models, notifications: Notifications) -> None:
        self._registry = registry
        self._database = database
        self._models = models
        self._notifications = notifications
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Go on with what an earlier server accepted."""
        query = select(Job).where(Job.status.in_(ACTIVE), Job.recipe_key == PROMOTION, Job.recipe_id.is_(None))
        async with self._database.read() as session:
            jobs = list((await session.execute(query.order_by(Job.created_at))).scalars())
        for job in jobs:
            self._begin(job)

    async def close(self) -> None:
        """Stop; what is on its way goes on after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def create(self, caller: Caller, artifact_id: uuid.UUID, models: Sequence[PromotedModel]) -> Job:
        """A job that makes models of a checkpoint; needs `project:adapt` in the checkpoint's project.

        What cannot be made is refused at once: other artifacts, models that the checkpoint does not have, keys that are
        taken, and checkpoints whose files are gone since their job completed.
        """
        keys = _keys(models)
        async with self._database.begin() as session:
            checkpoint, source = await _checkpoint(session, artifact_id)
            access = await require_in_project(session, caller, str(source.project_id), "project:adapt")
            saved = _saved(checkpoint)
            for model, key in zip(models, keys, strict=True):
                if model.model_key not in saved:
                    known = ", ".join(map(repr, sorted(saved))) or "none"
                    raise InvalidRequestError(
                        f"the checkpoint has no model {model.model_key!r:.80}; it has {known}", field="modelKey"
                    )
                await require_free_key(session, key)
                await self._require_files(saved[model.model_key], key)
            job = Job(
                project_id=source.project_id,
                name=f"Promote {checkpoint.name}"[:255],
                recipe_key=PROMOTION,
                entrypoint="",
                args={
                    "artifact_id": str(artifact_id),
                    "models": [
                        {
                            "model_key": model.model_key,
                            "name": model.name,
                            "key": key,
                            "checkpoint": saved[model.model_key],
                        }
                        for model, key in zip(models, keys, strict=True)
                    ],
                },
                num_gpus=0,
                created_by=caller.user_id,
            )
            session.add(job)
            await session.flush()
            session.add(JobStage(job_id=job.id, name=STAGE, place=0, total=len(models), processed=0))
            for key in keys:
                record(session, caller, "model.promote", f"model/{key}", project=access.project_key, job=str(job.id))
        self._begin(job)
        return job

    async def checkpoint_of(self, job_id: uuid.UUID) -> uuid.UUID | None:
        """The artifact of which a job made models; None for jobs of other kinds."""
        async with self._database.read() as session:
            job = await session.get(Job, job_id)
        return None if job is None or job.recipe_key != PROMOTION else uuid.UUID(job.args["artifact_id"])

    async def _require_files(self, checkpoint: str, key: str) -> None:
        if not await asyncio.to_thread(registry_entry(self._registry, checkpoint).is_dir):
            raise InvalidRequestError(
                "the files of this checkpoint are gone, as those of every job that completed; take the model that the "
                "job saved at its end",
                field="artifactId",
            )
        if await asyncio.to_thread(registry_entry(self._registry, key).exists):
            raise InvalidRequestError(
                f"the registry holds files under the key {key!r}; choose another name", field="name"
            )

    # ----------------------------------------------------------------------------------------------- in the background

    def _begin(self, job: Job) -> None:
        task = asyncio.create_task(self._work(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, job: Job) -> None:
        """One promotion from its start to its end, whatever happens."""
        error: str | None = None
        try:
            for place, wish in enumerate(job.args["models"]):
                if not await self._claim(job, place):
                    break
                await self._make(job, wish)
        except HarmoniaError as failure:
            error = failure.message
        except OSError as failure:
            error = f"{failure.strerror or failure}: {failure.filename or self._registry}"
        except Exception:
            log.exception("the promotion %s failed", job.id)
            error = "the server met an error of its own while it made the model; its log has the trace"
        await asyncio.to_thread(shutil.rmtree, self._incoming(job), ignore_errors=True)
        await until_noted(f"promotion {job.id}", partial(self._settle, job, error))

    async def _claim(self, job: Job, done: int) -> bool:
        """Whether nobody has canceled it; notes how many models are made."""
        async with self._database.begin() as session:
            row = await session.get(Job, job.id, with_for_update=True)
            if row is None or row.status not in ACTIVE:
                return False
            row.status, row.started_at = "RUNNING", row.started_at or now_ms()
            stage = update(JobStage).where(JobStage.job_id == job.id)
            await session.execute(stage.values(processed=done, started_at=row.started_at))
            return True

    async def _make(self, job: Job, wish: Mapping[str, str]) -> None:
        async with self._database.read() as session:
            made = await find_model(session, wish["key"])
            parent = await find_model(session, wish["model_key"])
        if made is None or made.job_id != job.id:  # else an earlier server came that far
            target = registry_entry(self._registry, wish["key"])
            if not target.exists():
                source = registry_entry(self._registry, wish["checkpoint"])
                await asyncio.to_thread(_link_files, source, self._incoming(job), target)
            new = NewModel(
                path=str(target),
                name=wish["name"],
                key=wish["key"],
                parent_id=None if parent is None else parent.id,
                job_id=job.id,
            )
            try:
                await self._models.register(None, new)
            except HarmoniaError:
                await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
                raise
        async with self._database.begin() as session:
            kept = select(JobArtifact.id).where(JobArtifact.job_id == job.id, JobArtifact.name == wish["key"])
            if (await session.execute(kept)).first() is None:
                details = {"model_key": wish["key"]}
                session.add(JobArtifact(job_id=job.id, name=wish["key"], kind="MODEL", details=details))

    async def _settle(self, job: Job, error: str | None) -> None:
        async with self._database.begin() as session:
            row = await session.get(Job, job.id, with_for_update=True)
            if row is None or row.status not in ACTIVE:
                return
            row.status, row.ended_at, row.error = "COMPLETED" if error is None else "FAILED", now_ms(), error
            if error is None:
                stage = update(JobStage).where(JobStage.job_id == job.id)
                await session.execute(stage.values(processed=JobStage.total, ended_at=row.ended_at))
            await announce_job(session, self._notifications, row)
            log.info("promotion %s: %s%s", row.id, row.status, f" ({error})" if error else "")

    def _incoming(self, job: Job) -> Path:
        return self._registry / INCOMING / f"promotion-{job.id}"


def _keys(models: Sequence[PromotedModel]) -> list[str]:
    """Of the models that are wanted, made of their names."""
    if not models:
        raise InvalidRequestError("models: name at least one model of the checkpoint", field="models")
    keys = [key_from(checked_name(model.name), "name") for model in models]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InvalidRequestError(f"models: two of them would have the key {twice!r}; choose other names", field="name")
    return keys


async def _checkpoint(session: AsyncSession, artifact_id: uuid.UUID) -> tuple[JobArtifact, Job]:
    query = select(JobArtifact, Job).join(Job, Job.id == JobArtifact.job_id)
    query = query.where(JobArtifact.id == artifact_id, Job.deleted_at.is_(None), Job.project_id.is_not(None))
    row = (await session.execute(query)).first()
    if row is None:
        raise EntityNotFoundError(f"Artifact {str(artifact_id)!r} does not exist", entity="artifact")
    return row[0], row[1]


def _saved(artifact: JobArtifact) -> dict[str, str]:
    """Keys of the checkpoint's models in the registry, by the keys of the models that were trained."""
    names = artifact.details.get("model_checkpoint_names")
    if artifact.kind != "CHECKPOINT" or not isinstance(names, dict):
        raise InvalidRequestError(
            f"artifact {artifact.id} is of the kind {artifact.kind}; checkpoints become models", field="artifactId"
        )
    # A recipe may say what it likes; only what its job saved becomes a model of somebody else's choice.
    own = f"checkpoints/{artifact.job_id}/"
    return {str(model): name for model, name in names.items() if isinstance(name, str) and name.startswith(own)}


def _link_files(source: Path, incoming: Path, target: Path) -> None:
    """Let another folder hold the same files, or copies of them where the disk knows no links."""
    folder = incoming / target.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        place = folder / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
        elif not path.name.startswith(_LEFT_OUT):
            try:
                os.link(path, place)
            except OSError:
                shutil.copyfile(path, place)
    folder.rename(target)
