"""Models in projects: added, deployed, made the default, switched off, taken out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, HarmoniaError, InvalidRequestError, UnavailableError
from harmonia.protocol.instances import MAX_DRAFT_STEPS
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.models import ComputePool, Model, ModelService
from harmonia.server.db.projects import Project
from harmonia.server.services.access import (
    Caller,
    ProjectAccess,
    by_id_or_key,
    require_anywhere,
    require_in_project,
    visible_projects,
)
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_name
from harmonia.server.services.models.deletion import Deletion
from harmonia.server.services.models.models import ADAPTER, DRAFT, EXTERNAL, named_model
from harmonia.server.services.models.roots import find_roots, wanted_rows
from harmonia.server.services.models.serving import Serving
from harmonia.server.services.models.system_prompts import template_of

PERMISSION = "project:infer"
"""To ask models."""


class Keep(Enum):
    """Stands for what stays as it is, where None takes back to the default."""

    IT = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model may run, by ids or keys of pools, and how long its first token may take.

    None: in any pool, and as long as the server's own bound says.
    """

    compute_pools: Sequence[str] | Keep | None = Keep.IT
    max_ttft_ms: int | Keep | None = Keep.IT


@dataclass(frozen=True, slots=True)
class ServiceChanges:
    """What shall be different about a model in a project; None: nothing."""

    is_default: bool | None = None
    desired_online: bool | None = None
    name: str | None = None
    placement: Placement | None = None
    num_draft_steps: int | None = None
    system_prompt: uuid.UUID | Keep | None = Keep.IT
    """The template with which its chats begin; None: with none."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A model in a project."""

    service: ModelService
    model: Model


@dataclass(frozen=True, slots=True)
class Deployed:
    """What became of a deployment."""

    bound: Bound
    warnings: list[str]


class Deployments:
    """Everything about models that differs between projects."""

    def __init__(self, database: Database, serving: Serving, deletion: Deletion) -> None:
        self._database = database
        self._serving = serving
        self._deletion = deletion

    async def of_project(self, project_id: uuid.UUID) -> list[Bound]:
        """The models of a project that the caller was let see, oldest first."""
        query = (
            select(ModelService, Model)
            .join(Model, Model.id == ModelService.model_id)
            .where(ModelService.project_id == project_id, ModelService.deleted_at.is_(None))
            .order_by(ModelService.created_at, ModelService.key)
        )
        async with self._database.read() as session:
            return [Bound(service, model) for service, model in (await session.execute(query)).all()]

    async def of_model(self, caller: Caller, model_id: uuid.UUID, *, archived: bool = False) -> list[Bound]:
        """A model in the projects that the caller may read, in those that are archived or in the others."""
        query = (
            select(ModelService, Model)
            .join(Model, Model.id == ModelService.model_id)
            .join(Project, Project.id == ModelService.project_id)
            .where(ModelService.model_id == model_id, ModelService.deleted_at.is_(None))
            .where(Project.archived_at.is_not(None) if archived else Project.archived_at.is_(None))
            .where(Project.id.in_(visible_projects(caller)))
            .order_by(Project.key)
        )
        async with self._database.read() as session:
            return [Bound(service, model) for service, model in (await session.execute(query)).all()]

    async def askable(self, caller: Caller) -> list[tuple[str, Bound]]:
        """What the caller may ask now: models that are switched on, with the keys of their projects."""
        query = (
            select(Project.key, ModelService, Model)
            .join(ModelService, ModelService.project_id == Project.id)
            .join(Model, Model.id == ModelService.model_id)
            .where(ModelService.desired_online, ModelService.deleted_at.is_(None), Project.archived_at.is_(None))
            .where(Project.id.in_(visible_projects(caller, PERMISSION)))
            .order_by(Project.key, ModelService.key)
        )
        async with self._database.read() as session:
            rows = (await session.execute(query)).all()
        return [(key, Bound(service, model)) for key, service, model in rows]

    async def by_id(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Bound]:
        """Models of projects by the ids of their services, those that were taken out included."""
        query = select(ModelService, Model).join(Model, Model.id == ModelService.model_id)
        async with self._database.read() as session:
            rows = (await session.execute(query.where(ModelService.id.in_(ids)))).all()
            return {service.id: Bound(service, model) for service, model in rows}

    async def add(self, caller: Caller, project: str, models: Sequence[str]) -> dict[str, str]:
        """Put models into a project; by model, why it cannot be done."""
        failures: dict[str, str] = {}
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:update")
            for name in models:
                try:
                    row = await named_model(session, name, caller, alone=True)
                    await _bind(session, caller, access, row)
                except HarmoniaError as error:
                    failures[name] = error.message
        return failures

    async def deploy(
        self,
        caller: Caller,
        project: str,
        model: str,
        *,
        placement: Placement | None = None,
        num_draft_steps: int | None = None,
        wait: bool = False,
    ) -> Deployed:
        """Put a model into a project and have it served. One that failed before is tried again.

        num_draft_steps: tokens to propose at a time, by a draft to its target and to adapters beside it; for any other
        model the conversation is searched for what may follow. wait: return when it is online; why it cannot be, as
        the error that the worker met.
        """
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:update")
            row = await named_model(session, model, caller, alone=True)
            service = await _bind(session, caller, access, row)
            changes = ServiceChanges(desired_online=True, placement=placement, num_draft_steps=num_draft_steps)
            await _apply(session, service, changes)
            await _require_devices(session, row)
            if row.online != "ONLINE":
                row.online, row.error = "PENDING", None
            warnings = await _warnings(session, row, service)
            record(session, caller, "model.deploy", f"model/{row.key}", to=access.project_key)
        self._serving.wake(retry=row.key)
        if wait and row.kind != EXTERNAL:
            row = await self._serving.settled(row.id)
            if row.online != "ONLINE":
                raise UnavailableError(f"{row.key!r} could not be deployed: {row.error or 'it was switched off'}")
        return Deployed(Bound(service, row), warnings)

    async def change(self, caller: Caller, project: str, service: str, changes: ServiceChanges) -> Bound:
        """Change a model in a project, named by the id of either or by their key."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:update")
            bound = await named_service(session, access.project_id, service)
            await _apply(session, bound.service, changes)
            if changes.desired_online:
                await _require_devices(session, bound.model)
            told = {
                name: value
                for name in ("is_default", "desired_online", "num_draft_steps")
                if (value := getattr(changes, name)) is not None
            }
            if changes.system_prompt is not Keep.IT:
                told["system_prompt"] = None if changes.system_prompt is None else str(changes.system_prompt)
            record(session, caller, "model.serve", f"model/{bound.model.key}", to=access.project_key, **told)
        self._serving.wake()
        return bound

    async def remove(self, caller: Caller, project: str, model: str) -> bool:
        """Take a model out of a project. It stays in the registry, unless it is not published and in no other."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:update")
            bound = await named_service(session, access.project_id, model)
            await named_model(session, str(bound.model.id), alone=True)
            bound.service.deleted_at = now_ms()
            bound.service.is_default = bound.service.desired_online = False
            bound.service.system_prompt_id = bound.service.num_draft_steps = None
            record(session, caller, "model.remove", f"model/{bound.model.key}", of=access.project_key)
            await session.flush()
            left = await self._deletion.forget_unused(session, caller, bound.model)
        self._serving.wake()
        if left is not None:
            await self._deletion.remove_files(left)
        return True

    async def terminate(self, caller: Caller, model: str, *, force: bool = False) -> str:
        """Switch a model off in every project; several that want it online need `force`. Returns what was done."""
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "model:update")
            row = await named_model(session, model, caller)
            query = (
                select(ModelService, Project.key)
                .join(Project, Project.id == ModelService.project_id)
                .where(ModelService.model_id == row.id, ModelService.desired_online, ModelService.deleted_at.is_(None))
                .order_by(Project.key)
            )
            wanting = (await session.execute(query)).all()
            keys = [key for _, key in wanting]
            if len(wanting) > 1 and not force:
                raise InvalidRequestError(
                    f"{len(keys)} projects want {row.key!r} online: {', '.join(keys)}; give force to end it for all",
                    field="force",
                )
            for service, _ in wanting:
                service.desired_online = False
            record(session, caller, "model.terminate", f"model/{row.key}", projects=keys)
        self._serving.wake()
        return f"{row.key} is switched off in {', '.join(keys) or 'no project: none wanted it online'}"


async def named_service(session: AsyncSession, project_id: uuid.UUID, text: str) -> Bound:
    """A model of a project by the id of either or by their key; `EntityNotFoundError` if there is none."""
    named = or_(by_id_or_key(ModelService.id, ModelService.key, text), by_id_or_key(Model.id, Model.key, text))
    query = (
        select(ModelService, Model)
        .join(Model, Model.id == ModelService.model_id)
        .where(ModelService.project_id == project_id, ModelService.deleted_at.is_(None), named)
    )
    row = (await session.execute(query)).first()
    if row is None:
        raise EntityNotFoundError(f"Model {text!r} was not added here; add or deploy it first", entity="model")
    return Bound(row[0], row[1])


async def _bind(session: AsyncSession, caller: Caller, access: ProjectAccess, model: Model) -> ModelService:
    """The model in the project, added unless it is there."""
    query = select(ModelService).where(ModelService.project_id == access.project_id, ModelService.model_id == model.id)
    service = (await session.execute(query)).scalar_one_or_none()
    if service is None:
        service = ModelService(project_id=access.project_id, model_id=model.id, key=model.key, name=model.name)
        session.add(service)
        record(session, caller, "model.add", f"model/{model.key}", to=access.project_key)
        await session.flush()
    service.deleted_at = None
    return service


async def _apply(session: AsyncSession, service: ModelService, changes: ServiceChanges) -> None:
    if changes.num_draft_steps is not None:
        if not 1 <= changes.num_draft_steps <= MAX_DRAFT_STEPS:
            raise InvalidRequestError(
                f"num_draft_steps: must be from 1 to {MAX_DRAFT_STEPS}, got {changes.num_draft_steps}; to have "
                "nothing proposed, deploy the target of a draft instead, or detach a model without one and deploy it "
                "again",
                field="num_draft_steps",
            )
        service.num_draft_steps = changes.num_draft_steps
    if isinstance(changes.system_prompt, uuid.UUID):
        await template_of(session, service.project_id, changes.system_prompt)
    if changes.system_prompt is not Keep.IT:
        service.system_prompt_id = changes.system_prompt
    if changes.placement is not None:
        await _place(session, service, changes.placement)
    if changes.name is not None:
        service.name = checked_name(changes.name)
    if changes.desired_online is not None:
        service.desired_online = changes.desired_online
    if changes.is_default is not None:
        others = update(ModelService).where(ModelService.project_id == service.project_id)
        if changes.is_default:
            await session.execute(others.values(is_default=False))
        service.is_default = changes.is_default


async def _place(session: AsyncSession, service: ModelService, placement: Placement) -> None:
    if placement.max_ttft_ms is not Keep.IT:
        if placement.max_ttft_ms is not None and placement.max_ttft_ms < 1:
            message = f"max_ttft_ms: must be 1 or more, got {placement.max_ttft_ms}"
            raise InvalidRequestError(message, field="max_ttft_ms")
        service.max_ttft_ms = placement.max_ttft_ms
    if placement.compute_pools is not Keep.IT:
        service.pools = await _pools(session, placement.compute_pools)


async def _pools(session: AsyncSession, names: Sequence[str] | None) -> list[str]:
    """The keys of pools that serve; None: of none in particular."""
    if names is not None and not names:
        raise InvalidRequestError(
            "placement: name at least one compute pool, or leave compute_pools out", field="compute_pools"
        )
    keys = []
    for name in names or ():
        query = select(ComputePool).where(by_id_or_key(ComputePool.id, ComputePool.key, name))
        pool = (await session.execute(query)).scalar_one_or_none()
        if pool is None:
            raise EntityNotFoundError(f"Compute pool {name!r} does not exist", entity="compute pool")
        if "INFERENCE" not in pool.capabilities:
            raise InvalidRequestError(f"compute pool {name!r} takes jobs only; name another", field="compute_pools")
        keys.append(pool.key)
    return keys


async def _require_devices(session: AsyncSession, model: Model) -> None:
    if model.kind == EXTERNAL:
        return
    query = select(ComputePool.id).where(ComputePool.num_inference > 0).limit(1)
    if (await session.execute(query)).first() is None:
        raise InvalidRequestError(
            "no compute pool has a device for inference; resize its inference partition first", field="placement"
        )


async def _warnings(session: AsyncSession, model: Model, service: ModelService) -> list[str]:
    """What will be proposed where somebody asked for proposals and there is no draft."""
    if service.num_draft_steps is None or model.kind == DRAFT:
        return []
    if model.kind == EXTERNAL:
        return [f"{model.key} runs at its provider, where num_draft_steps means nothing"]
    await session.flush()
    roots = find_roots((await session.execute(wanted_rows())).all())
    if any(model.key in root.adapters and root.model.kind == DRAFT for root in roots.values()):
        return []
    shared = ", and one of its base model proposes to it while that is deployed" if model.kind == ADAPTER else ""
    return [
        f"{model.key} has no draft model: what followed in the conversation before is proposed instead. The recipe "
        f"specdec_alignment trains a draft{shared}"
    ]
