"""Models of the registry and of projects."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from enum import Enum

import strawberry
from strawberry.scalars import JSON

from harmonia.protocol.instances import SCHEME
from harmonia.server.db import models as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.entity_filters import ProjectFilter
from harmonia.server.graphql.lazy import PROJECTS, object_of
from harmonia.server.graphql.scalars import IdOrKey, LongInt, Timestamp
from harmonia.server.services.models.deployments import Bound
from harmonia.server.services.models.models import ADAPTER, EXTERNAL, TOKENS_TO_GENERATE, ModelWish, compute_of


@strawberry.enum
class ModelOnline(Enum):
    """How a model fares, over all projects."""

    ONLINE = "ONLINE"
    DEGRADED = "DEGRADED"
    PENDING = "PENDING"
    SCALING = "SCALING"
    OFFLINE = "OFFLINE"
    ERROR = "ERROR"


@strawberry.enum
class ModelServiceStatus(Enum):
    """How a model fares in one project."""

    PENDING = "PENDING"
    ONLINE = "ONLINE"
    DEGRADED = "DEGRADED"
    SCALING = "SCALING"
    OFFLINE = "OFFLINE"
    TURNED_OFF = "TURNED_OFF"
    ERROR = "ERROR"


@strawberry.enum
class ProviderName(Enum):
    """Who computes."""

    OPEN_AI = "OPEN_AI"
    LEGACY_OPEN_AI = "LEGACY_OPEN_AI"
    HARMONY = "HARMONY"
    GOOGLE = "GOOGLE"
    ANTHROPIC = "ANTHROPIC"


@strawberry.enum
class ExternalModelProviderName(Enum):
    """Who else computes."""

    OPEN_AI = "OPEN_AI"
    LEGACY_OPEN_AI = "LEGACY_OPEN_AI"
    GOOGLE = "GOOGLE"
    ANTHROPIC = "ANTHROPIC"


@strawberry.enum
class ModelCapabilityFilter(Enum):
    """What a model can do."""

    Embedding = "Embedding"
    TextGeneration = "TextGeneration"
    ImageUnderstanding = "ImageUnderstanding"
    Reasoning = "Reasoning"
    Regression = "Regression"


@strawberry.type
class ModelComputeConfigOutput:
    """How a model is run: devices per replica, tokens of cache, tokens of prompt and answer together."""

    tp: int
    kv_cache_len: int
    max_seq_len: int


@strawberry.type
class ModelComputeSettings:
    """What somebody set of how a model is run; null: the default, which depends on the machine."""

    tp: int | None
    kv_cache_len: int | None
    max_seq_len: int | None
    tokens_to_generate: int | None


@strawberry.type
class ModelExternalProviderData:
    """Where an external model is. Its API key is never told."""

    provider: ExternalModelProviderName
    external_model_id: str
    endpoint_url: str | None
    extra_params: JSON | None


@strawberry.type
class ModelPlacementOutput:
    """Where a model may run, no pool meaning any, and how long its first token may take."""

    compute_pools: list[str]
    max_ttft_ms: int | None


async def _projects(
    root: strawberry.Parent[Model],
    info: Info,
    filter: ProjectFilter | None = None,
) -> list[object]:
    """Those that have it and that the caller may read; archived ones if the filter wants them instead."""
    archived = filter is not None and bool(filter.is_archived)
    rows = await info.context.services.models.projects(info.context.caller, root.id, archived=archived)
    return [object_of(info, "Project", row) for row in rows]


@strawberry.type
class Model:
    """A base model, an adapter, or a model at a provider."""

    row: strawberry.Private[db.Model]
    id: uuid.UUID
    key: str
    name: str
    created_at: Timestamp
    online: ModelOnline
    error: str | None
    is_external: bool
    is_adapter: bool
    is_training: bool
    is_published: bool
    is_stable: bool
    is_spec_dec_draft: bool
    in_storage: bool
    provider_name: ProviderName
    family: str | None
    size: LongInt | None
    supported_tp: list[int]
    source_model_key: str | None
    harmony_url: str | None
    projects: list[object] = strawberry.field(resolver=_projects, graphql_type=PROJECTS)

    @classmethod
    def of(cls, row: db.Model) -> Model:
        """From its row."""
        external = row.external or {}
        is_external = row.kind == EXTERNAL
        return cls(
            row=row,
            id=row.id,
            key=row.key,
            name=row.name,
            created_at=Timestamp(row.created_at),
            online=ModelOnline(row.online),
            error=row.error,
            is_external=is_external,
            is_adapter=row.kind == ADAPTER,
            is_training=row.is_training,
            is_published=row.is_published,
            is_stable=row.is_stable,
            is_spec_dec_draft=False,
            in_storage=not is_external,
            provider_name=ProviderName(external.get("provider", "HARMONY")),
            family=row.family,
            size=None if row.size is None else LongInt(row.size),
            supported_tp=[] if is_external else [1],
            source_model_key=None,
            harmony_url=None if is_external else f"{SCHEME}{row.key}",
        )

    @strawberry.field
    async def backbone(self, info: Info) -> Model | None:
        """Of an adapter: its base model."""
        return await _model(info, self.row.backbone_id)

    @strawberry.field
    async def parent(self, info: Info) -> Model | None:
        """What it was trained from."""
        return await _model(info, self.row.parent_id)

    @strawberry.field
    def capabilities(self) -> list[ModelCapabilityFilter]:
        """What it can do."""
        return [ModelCapabilityFilter(name) for name in self.row.capabilities]

    @strawberry.field
    async def compute_config(self, info: Info) -> ModelComputeConfigOutput | None:
        """How it is run: an adapter as its base model, an external model as its provider pleases."""
        compute = compute_of(await self._run_as(info))
        if compute is None:
            return None
        return ModelComputeConfigOutput(
            tp=compute["tp"], kv_cache_len=compute["kv_cache_len"], max_seq_len=compute["max_seq_len"]
        )

    @strawberry.field
    async def compute_settings(self, info: Info) -> ModelComputeSettings:
        """What was set of it: for an adapter, of its base model, but for `tokensToGenerate`."""
        chosen = (await self._run_as(info)).compute
        return ModelComputeSettings(
            tp=chosen.get("tp"),
            kv_cache_len=chosen.get("kv_cache_len"),
            max_seq_len=chosen.get("max_seq_len"),
            tokens_to_generate=self.row.compute.get(TOKENS_TO_GENERATE),
        )

    async def _run_as(self, info: Info) -> db.Model:
        backbone = self.row.backbone_id
        return self.row if backbone is None else (await info.context.services.models.by_id([backbone]))[backbone]

    @strawberry.field
    def external_provider_data(self) -> ModelExternalProviderData | None:
        """Of an external model."""
        external = self.row.external
        if external is None:
            return None
        return ModelExternalProviderData(
            provider=ExternalModelProviderName(external["provider"]),
            external_model_id=external["external_model_id"],
            endpoint_url=external["endpoint"],
            extra_params=external["extra_params"],
        )


async def _model(info: Info, model_id: uuid.UUID | None) -> Model | None:
    if model_id is None:
        return None
    row = (await info.context.services.models.by_id([model_id])).get(model_id)
    return None if row is None else Model.of(row)


@strawberry.type
class ModelService:
    """A model in a project."""

    id: uuid.UUID
    project_id: uuid.UUID
    key: str
    name: str
    created_at: Timestamp
    model: Model
    status: ModelServiceStatus
    error: str | None
    is_default: bool
    desired_online: bool
    deleted: bool
    placement: ModelPlacementOutput | None

    @classmethod
    def of(cls, bound: Bound) -> ModelService:
        """From its rows."""
        row, model = bound.service, bound.model
        is_placed = bool(row.pools) or row.max_ttft_ms is not None
        placement = ModelPlacementOutput(compute_pools=row.pools, max_ttft_ms=row.max_ttft_ms) if is_placed else None
        return cls(
            id=row.id,
            project_id=row.project_id,
            key=row.key,
            name=row.name,
            created_at=Timestamp(row.created_at),
            model=Model.of(model),
            status=ModelServiceStatus(model.online) if row.desired_online else ModelServiceStatus.TURNED_OFF,
            error=model.error if row.desired_online else None,
            is_default=row.is_default,
            desired_online=row.desired_online,
            deleted=row.deleted_at is not None,
            placement=placement,
        )


@strawberry.input
class CapabilityFilter:
    """What models must be able to do: some of these, or all of these."""

    any: list[ModelCapabilityFilter] | None = None
    all: list[ModelCapabilityFilter] | None = None

    def is_met_by(self, capabilities: Sequence[str]) -> bool:
        """Whether a model that can do these is wanted."""
        some = self.any is None or any(item.value in capabilities for item in self.any)
        return some and (self.all is None or all(item.value in capabilities for item in self.all))


@strawberry.input
class ModelFilter:
    """Which models are wanted."""

    in_storage: bool | None = None
    available: bool | None = None
    trainable: bool | None = None
    capabilities: CapabilityFilter | None = None
    view_all: bool | None = None
    online: list[ModelOnline] | None = None
    published: bool | None = None

    @property
    def wish(self) -> ModelWish:
        """For services. The registry is everybody's, so `view_all` adds nothing."""
        able = self.capabilities
        return ModelWish(
            in_storage=self.in_storage,
            available=self.available,
            trainable=self.trainable,
            published=self.published,
            online=None if self.online is None else [item.value for item in self.online],
            any_of=None if able is None or able.any is None else [item.value for item in able.any],
            all_of=None if able is None or able.all is None else [item.value for item in able.all],
        )


@strawberry.type
class ModelQuery:
    """The registry."""

    @strawberry.field
    async def models(self, info: Info, filter: ModelFilter | None = None) -> list[Model]:
        """Every model that the filter lets through."""
        wish = ModelWish() if filter is None else filter.wish
        return [Model.of(row) for row in await info.context.services.models.all(info.context.caller, wish)]

    @strawberry.field
    async def model(self, info: Info, id_or_key: IdOrKey) -> Model | None:
        """One of them."""
        row = await info.context.services.models.find(info.context.caller, id_or_key)
        return None if row is None else Model.of(row)
