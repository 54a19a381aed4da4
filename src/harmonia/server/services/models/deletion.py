"""Models leave the registry, and with them the files that this server made or brought; others stay where they are."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger
from harmonia.protocol.instances import SCHEME
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.graders import Grader
from harmonia.server.db.jobs import ACTIVE, Job
from harmonia.server.db.models import Model, ModelService
from harmonia.server.db.projects import Project
from harmonia.server.services.access import Caller, require_anywhere
from harmonia.server.services.audit import record
from harmonia.server.services.models.models import ADAPTER, DRAFT, named_model, registry_entry

log = get_logger(__name__)

_ASIDE = ".deleted-"
"""How names of files begin that are about to be removed."""
_MAX_KEPT = 200


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a deleted model leaves in the registry's folder. is_owned: whether this server put the files there."""

    key: str
    is_owned: bool


class Deletion:
    """Takes models out of the registry."""

    def __init__(self, database: Database, registry: Path) -> None:
        """registry: the folder in which `model_registry://KEY` is found."""
        self._database = database
        self._registry = registry

    async def start(self) -> None:
        """Finish what an earlier server began."""
        await asyncio.to_thread(self._clear)

    async def delete(self, caller: Caller, model: str) -> None:
        """Delete a model for everybody, and its files if a job made or brought them.

        Errors: InvalidRequestError naming who uses it: projects that want it online, jobs, adapters, drafts, graders,
        and other models that are made of the same files. Interactions keep its name.
        """
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "model:update")
            row = await named_model(session, model, caller, alone=True)
            users = await _users(session, row)
            if users:
                raise InvalidRequestError(f"{row.key!r} cannot be deleted: {'; '.join(users)}", field="model")
            left = await self._forget(session, row)
            record(session, caller, "model.delete", f"model/{left.key}", files=left.is_owned)
        await self.remove_files(left)

    async def forget_unused(self, session: AsyncSession, caller: Caller, model: Model) -> Leftover | None:
        """Delete a model that is not published and in no project any longer; None if it stays. `remove_files` is the
        caller's to call, after the transaction."""
        bound = select(ModelService.id).where(ModelService.model_id == model.id, ModelService.deleted_at.is_(None))
        if model.is_published or (await session.execute(bound.limit(1))).first() is not None:
            return None
        users = await _users(session, model)
        if users:
            log.info("model %s is in no project and stays: %s", model.key, "; ".join(users))
            return None
        left = await self._forget(session, model)
        record(session, caller, "model.delete", f"model/{left.key}", files=left.is_owned)
        return left

    async def remove_files(self, left: Leftover) -> None:
        """What `delete` does with files."""
        await asyncio.to_thread(self._remove, left)

    async def _forget(self, session: AsyncSession, model: Model) -> Leftover:
        """The row stays, since interactions name it; its key is free again."""
        left = Leftover(model.key, model.job_id is not None)
        model.deleted_at, model.secret, model.online, model.error = now_ms(), None, "OFFLINE", None
        model.key = f"{model.key[:_MAX_KEPT]}~{model.id.hex}"
        services = update(ModelService).where(ModelService.model_id == model.id, ModelService.deleted_at.is_(None))
        await session.execute(services.values(deleted_at=now_ms(), is_default=False))
        return left

    def _remove(self, left: Leftover) -> None:
        entry = registry_entry(self._registry, left.key)
        if entry.is_symlink():
            entry.unlink()
        elif left.is_owned and entry.exists():
            entry.rename(entry.with_name(f"{_ASIDE}{uuid.uuid4().hex}"))
            self._clear()

    def _clear(self) -> None:
        if self._registry.is_dir():
            for path in self._registry.glob(f"{_ASIDE}*"):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


async def _users(session: AsyncSession, model: Model) -> list[str]:
    """Who needs a model, each with what to do about it."""
    wanting = (
        select(Project.key)
        .join(ModelService, ModelService.project_id == Project.id)
        .where(ModelService.model_id == model.id, ModelService.desired_online, ModelService.deleted_at.is_(None))
        .where(Project.archived_at.is_(None))
        .order_by(Project.key)
    )
    upon = select(Model.key).where(Model.backbone_id == model.id, Model.deleted_at.is_(None)).order_by(Model.key)
    sharing = select(Model.key).where(Model.source == model.source, Model.id != model.id, Model.deleted_at.is_(None))
    graders = (
        select(Project.key, Grader.key)
        .join(Project, Project.id == Grader.project_id)
        .where(Grader.model_id == model.id)
        .order_by(Project.key, Grader.key)
    )
    found: dict[str, Iterable[object]] = {
        "it is deployed in {}; terminate it first": (await session.execute(wanting)).scalars(),
        "it is the base of the adapters {}; delete them first": (
            await session.execute(upon.where(Model.kind == ADAPTER))
        ).scalars(),
        "it answers for the drafts {}; delete them first": (
            await session.execute(upon.where(Model.kind == DRAFT))
        ).scalars(),
        "jobs {} use it; wait for them, or cancel them": await _jobs(session, model),
        "graders {} judge with it; give them another": [f"{a}/{b}" for a, b in (await session.execute(graders)).all()],
    }
    if model.job_id is not None and model.source is not None:
        found["its files are also those of {}; delete that first"] = (await session.execute(sharing)).scalars()
    named = {text: ", ".join(map(str, names)) for text, names in found.items()}
    return [text.format(names) for text, names in named.items() if names]


async def _jobs(session: AsyncSession, model: Model) -> list[uuid.UUID]:
    """Those that have not ended and name it anywhere in their arguments."""
    query = select(Job).where(Job.status.in_(ACTIVE)).order_by(Job.created_at)
    names = {model.key, str(model.id), f"{SCHEME}{model.key}"}
    return [job.id for job in (await session.execute(query)).scalars() if names & set(_texts(job.args))]


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
