"""The registry of models: what there is, where it is, and how it is to be run."""

from __future__ import annotations

import asyncio
import difflib
import operator
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError, PermissionDeniedError
from harmonia.fleet.files import inspect_model
from harmonia.protocol.facts import ModelFacts
from harmonia.protocol.instances import DEFAULT_DRAFT_STEPS
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import Job
from harmonia.server.db.models import Model, ModelImport, ModelService
from harmonia.server.db.projects import Project
from harmonia.server.services.access import Caller, by_id_or_key, require_anywhere, visible_projects
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_key, checked_name, key_from
from harmonia.server.services.models.external import PROVIDERS, ExternalModels
from harmonia.server.services.outbound import checked_url
from harmonia.server.services.secrets import Secrets

BASE, ADAPTER, DRAFT, EXTERNAL = "base", "adapter", "draft", "external"
DEFAULT_KV_CACHE_LEN = 131_072
TOKENS_TO_GENERATE = "tokens_to_generate"
"""The one setting that every model has for itself, wherever and beside whatever it runs."""
_MAX_TOKENS = 2**31 - 1
_SHOWN_KEYS = 5
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewModel:
    """A model to register. path: a folder or GGUF file, or `model_registry://KEY`; key: None makes one of the name."""

    path: str
    name: str
    key: str | None = None
    parent_id: uuid.UUID | None = None
    job_id: uuid.UUID | None = None
    is_published: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NewExternalModel:
    """A model at somebody else's. endpoint: None takes the provider's own."""

    name: str
    provider: str
    external_model_id: str
    api_key: str = field(repr=False)
    endpoint: str | None = None
    extra_params: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWish:
    """Which models are wanted; None: never mind."""

    in_storage: bool | None = None
    available: bool | None = None
    trainable: bool | None = None
    published: bool | None = None
    online: Collection[str] | None = None
    any_of: Collection[str] | None = None
    all_of: Collection[str] | None = None
    size: Mapping[str, int] = field(default_factory=dict)
    """Bounds on the number of parameters, by `eq`, `neq`, `gt`, `gte`, `lt` and `lte`; external models have none."""

    def allows(self, model: Model) -> bool:
        """Whether a model is one of them."""
        able = set(model.capabilities)
        return (
            self.in_storage in (None, model.kind != EXTERNAL)
            and self.available in (None, model.online != "ERROR")
            and self.trainable in (None, model.is_trainable)
            and self.published in (None, model.is_published)
            and (self.online is None or model.online in self.online)
            and (self.any_of is None or bool(able & set(self.any_of)))
            and (self.all_of is None or able >= set(self.all_of))
            and (not self.size or (model.size is not None and self._fits(model.size)))
        )

    def _fits(self, size: int) -> bool:
        return all(_COMPARISONS[name](size, bound) for name, bound in self.size.items())


class Models:
    """Everything about models that is the same in every project."""

    def __init__(self, database: Database, registry: Path, secrets: Secrets, external: ExternalModels) -> None:
        """registry: the folder in which `model_registry://KEY` is found."""
        self._database = database
        self._registry = registry
        self._secrets = secrets
        self._external = external

    async def add(self, caller: Caller, new: NewModel) -> Model:
        """Register a model for everybody; see `register`."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, "model:create")
        return await self.register(caller, new)

    async def register(self, caller: Caller | None, new: NewModel) -> Model:
        """The same where somebody may who need not be asked, such as a job that was allowed to make a model.

        Errors: UnknownModelError and UnsupportedModelError for what is at the path; InvalidRequestError for a key that
        is taken, for an adapter whose base model is not registered, and for a draft whose target is not.
        """
        name = checked_name(new.name)
        key = checked_key(new.key) if new.key else key_from(name)
        facts = await inspect_model(new.path, self._registry)
        async with self._database.begin() as session:
            await require_free_key(session, key)
            backbone = None if facts.kind == BASE else await _backbone(session, facts)
            model = _row(new, key, facts, backbone)
            session.add(model)
            record(session, caller, "model.create", f"model/{key}", path=facts.path)
            await session.flush()
            await asyncio.to_thread(_link, self._registry, key, Path(facts.path))
            return model

    async def add_external(self, caller: Caller, new: NewExternalModel) -> Model:
        """Register a model at a provider, with the key to use there."""
        if new.provider not in PROVIDERS:
            raise InvalidRequestError(f"{new.provider!r} is none of {', '.join(PROVIDERS)}", field="provider")
        for name in ("api_key", "external_model_id"):
            if not str(getattr(new, name)).strip():
                raise InvalidRequestError(f"{name}: an external model needs one", field=name)
        endpoint = None if new.endpoint is None else checked_url(new.endpoint, "endpoint")
        if endpoint is not None:
            async with self._database.read() as session:
                await require_anywhere(session, caller, "model:create")
            await self._external.check_endpoint(endpoint)
        name = checked_name(new.name)
        key = key_from(name)
        sealed = await asyncio.to_thread(self._secrets.seal, new.api_key)
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "model:create")
            await require_free_key(session, key)
            model = Model(
                key=key,
                name=name,
                kind=EXTERNAL,
                capabilities=["TextGeneration"],
                is_trainable=False,
                external={
                    "provider": new.provider,
                    "external_model_id": new.external_model_id,
                    "endpoint": endpoint,
                    "extra_params": new.extra_params,
                },
                secret=sealed,
                online="ONLINE",
            )
            session.add(model)
            record(session, caller, "model.create", f"model/{key}", provider=new.provider)
            return model

    async def all(self, caller: Caller, wish: ModelWish) -> list[Model]:
        """The models of the registry, oldest first."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, "model:read")
            query = select(Model).where(Model.deleted_at.is_(None)).order_by(Model.created_at, Model.key)
            rows = (await session.execute(query)).scalars()
            return [row for row in rows if wish.allows(row)]

    async def find(self, caller: Caller, model: str) -> Model | None:
        """One by id or key; None if there is none."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, "model:read")
            return await find_model(session, model)

    async def by_id(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Model]:
        """Models by their ids, for whoever sees what names them; those that were deleted included."""
        async with self._database.read() as session:
            rows = (await session.execute(select(Model).where(Model.id.in_(ids)))).scalars()
            return {row.id: row for row in rows}

    async def projects(self, caller: Caller, model_id: uuid.UUID, *, archived: bool = False) -> list[Project]:
        """The projects that have a model, as far as the caller may read them."""
        is_archived = Project.archived_at.is_not(None) if archived else Project.archived_at.is_(None)
        query = (
            select(Project)
            .join(ModelService, ModelService.project_id == Project.id)
            .where(ModelService.model_id == model_id, ModelService.deleted_at.is_(None))
            .where(is_archived)
            .where(Project.id.in_(visible_projects(caller)))
            .order_by(Project.created_at, Project.key)
        )
        async with self._database.read() as session:
            return list((await session.execute(query)).scalars())

    async def update(
        self, caller: Caller, model: str, *, published: bool | None = None, stable: bool | None = None
    ) -> Model:
        """Change what the registry says of a model."""
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "model:update")
            row = await named_model(session, model, caller)
            row.is_published = row.is_published if published is None else published
            row.is_stable = row.is_stable if stable is None else stable
            record(session, caller, "model.update", f"model/{row.key}", published=published, stable=stable)
            return row

    async def set_compute(self, caller: Caller, model: str, changes: Mapping[str, int | None]) -> Model:
        """Change how a model is run; None takes a setting back to its default, and what is not named stays.

        It is the caller's to wake who serves it. An adapter runs as its base model does, or the draft beside which it
        is, and a draft as its target where nothing is set for itself, but for `tokens_to_generate`: so many tokens at
        most has an answer whose request says nothing else.
        """
        for name, value in changes.items():
            _check_compute(name, value)
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "model:update")
            row = await named_model(session, model, caller)
            if row.kind not in (BASE, DRAFT) and changes.keys() - {TOKENS_TO_GENERATE}:
                what = "runs elsewhere" if row.kind == EXTERNAL else "is an adapter; change its base model's"
                raise InvalidRequestError(f"{row.key!r} has no compute config of its own: it {what}", field="model")
            for name in ("max_seq_len", TOKENS_TO_GENERATE):
                longest = changes.get(name) or 0
                if row.native_seq_len is not None and longest > row.native_seq_len:
                    raise InvalidRequestError(
                        f"{name}: {row.key!r} was made for {row.native_seq_len} tokens, got {longest}", field=name
                    )
            after = {**row.compute, **changes}
            row.compute = {name: value for name, value in after.items() if value is not None}
            record(session, caller, "model.compute", f"model/{row.key}", **changes)
            return row


async def find_model(session: AsyncSession, model: str, *, alone: bool = False) -> Model | None:
    """A model by id or key. alone: so that whoever deletes or deploys it at the same time waits for the other."""
    named = by_id_or_key(Model.id, Model.key, model)
    query = select(Model).where(named, Model.deleted_at.is_(None))
    if alone:
        query = query.with_for_update(key_share=True)
    found: Model | None = (await session.execute(query)).scalar_one_or_none()
    return found


async def named_model(session: AsyncSession, model: str, caller: Caller | None = None, *, alone: bool = False) -> Model:
    """The same; `EntityNotFoundError` if there is none. caller: is told what there is, if they may see it."""
    row = await find_model(session, model, alone=alone)
    if row is None:
        hint = "" if caller is None else await _nearest(session, caller, model)
        raise EntityNotFoundError(f"Model {model!r} does not exist{hint}", entity="model")
    return row


async def _nearest(session: AsyncSession, caller: Caller, model: str) -> str:
    try:
        await require_anywhere(session, caller, "model:read")
    except PermissionDeniedError:
        return ""
    query = select(Model.key).where(Model.deleted_at.is_(None)).order_by(Model.key)
    keys = list((await session.execute(query)).scalars())
    if not keys:
        return "; there are none yet, add one first"
    near = difflib.get_close_matches(model, keys, _SHOWN_KEYS, cutoff=0.5)
    shown = ", ".join(repr(key) for key in near or keys[:_SHOWN_KEYS])
    return f"; nearest are {shown}" if near else f"; there is {shown}{', ...' if len(keys) > _SHOWN_KEYS else ''}"


def num_proposals(kind: str, saved: int | None, wanted: int | None) -> int:
    """Tokens to propose at a time. saved: with a draft; wanted: by the project that asks.

    Without a draft nothing is proposed unless somebody wants it; then the conversation is searched.
    """
    unwanted = (saved or DEFAULT_DRAFT_STEPS) if kind == DRAFT else 0
    return unwanted if wanted is None else wanted


def chosen_compute(model: Model, backbone: Model | None) -> dict[str, Any]:
    """What was set of how a model is run: for itself, else for its base model or its target."""
    shared = {} if backbone is None else backbone.compute
    return {name: value for name, value in shared.items() if name != TOKENS_TO_GENERATE} | model.compute


def compute_of(model: Model, backbone: Model | None) -> dict[str, int] | None:
    """`tp`, `kv_cache_len` and `max_seq_len` as they hold: what was set, else the defaults; None for external models.

    Without a setting the cache has at most `DEFAULT_KV_CACHE_LEN` tokens, and fewer where they do not fit.
    """
    if model.kind == EXTERNAL:
        return None
    native, chosen = model.native_seq_len or 0, chosen_compute(model, backbone)
    defaults = {"tp": 1, "kv_cache_len": DEFAULT_KV_CACHE_LEN, "max_seq_len": native}
    return {name: chosen.get(name, default) for name, default in defaults.items()}


def _check_compute(name: str, value: int | None) -> None:
    if value is None:
        return
    if name == "tp":
        if value != 1:
            raise InvalidRequestError(
                f"tp: a model runs on one device here, so it must be 1, got {value}; to make a model fit, lower "
                "kv_cache_len or max_seq_len",
                field="tp",
            )
        return
    least = 1 if name == TOKENS_TO_GENERATE else 2
    if not least <= value <= _MAX_TOKENS:
        raise InvalidRequestError(f"{name}: must be from {least} to {_MAX_TOKENS} tokens, got {value}", field=name)


async def require_free_key(session: AsyncSession, key: str) -> None:
    """`InvalidRequestError` if a model has the key."""
    if (await session.execute(select(Model.id).where(Model.key == key))).first() is not None:
        raise InvalidRequestError(f"the key {key!r} is taken; choose another", field="key")


_NAMED = {BASE: "a base model", ADAPTER: "an adapter"}


async def _backbone(session: AsyncSession, facts: ModelFacts) -> Model:
    """The registered base model of an adapter, or target of a draft: the one at the same place, else of the same key,
    else of the same name at the hub."""
    assert facts.base is not None
    kinds = (BASE,) if facts.kind == ADAPTER else (BASE, ADAPTER)
    imported = select(ModelImport.job_id).join(Job, Job.id == ModelImport.job_id)
    imported = imported.where(ModelImport.hub_id == facts.base, Job.status == "COMPLETED")
    for condition in (Model.source == facts.base, Model.key == facts.base, Model.job_id.in_(imported)):
        query = select(Model).where(condition, Model.kind.in_(kinds), Model.deleted_at.is_(None))
        row: Model | None = (await session.execute(query.order_by(Model.created_at).limit(1))).scalar_one_or_none()
        if row is not None:
            return row
    what = "is an adapter of" if facts.kind == ADAPTER else "drafts for"
    raise InvalidRequestError(
        f"{facts.path} {what} {facts.base}, which is not registered as {' or '.join(_NAMED[kind] for kind in kinds)}; "
        "add that model first",
        field="path",
    )


def _row(new: NewModel, key: str, facts: ModelFacts, backbone: Model | None) -> Model:
    able = ["Regression"] if facts.is_scalar else ["TextGeneration", "Embedding"]
    return Model(
        key=key,
        name=checked_name(new.name),
        kind=facts.kind,
        source=facts.path,
        backbone_id=None if backbone is None else backbone.id,
        parent_id=new.parent_id,
        job_id=new.job_id,
        family=facts.family if backbone is None else backbone.family,
        size=facts.num_parameters,
        num_draft_steps=facts.num_draft_steps,
        capabilities=able,
        is_trainable=backbone.is_trainable if backbone is not None and facts.kind == ADAPTER else facts.is_trainable,
        native_seq_len=facts.max_seq_len if backbone is None else backbone.native_seq_len,
        is_published=new.is_published,
    )


def registry_entry(registry: Path, key: str) -> Path:
    """Where the registry has, or would have, the files of a key; see `harmonia.models.registry` for names."""
    return registry / key.replace("/", "%2F")


def _link(registry: Path, key: str, path: Path) -> None:
    """Let `model_registry://KEY` name the model for jobs and workers too."""
    registry.mkdir(parents=True, exist_ok=True)
    entry = registry_entry(registry, key)
    if entry.resolve() == path:
        return
    try:
        entry.symlink_to(path)
    except FileExistsError as error:
        raise InvalidRequestError(
            f"the registry {registry} has another model of the key {key!r}; choose another key", field="key"
        ) from error
