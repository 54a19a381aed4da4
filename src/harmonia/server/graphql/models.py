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
from harmonia.server.graphql.entity_filters import AbCampaignFilter, ProjectFilter
from harmonia.server.graphql.figures import Activity, activity
from harmonia.server.graphql.lazy import ARTIFACT, CAMPAIGNS, JOB, PROJECTS, object_of
from harmonia.server.graphql.metrics import MetricWithContext
from harmonia.server.graphql.paging import TimeRange
from harmonia.server.graphql.scalars import IdOrKey, LongInt, Timestamp
from harmonia.server.graphql.system_prompts import SystemPromptTemplate
from harmonia.server.services.models.deployments import Bound
from harmonia.server.services.models.models import (
    ADAPTER,
    DRAFT,
    EXTERNAL,
    TOKENS_TO_GENERATE,
    ModelWish,
    chosen_compute,
    compute_of,
    num_proposals,
)


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


async def _training_run(root: strawberry.Parent[Model], info: Info) -> object | None:
    """The job that made or imported it, if the caller may see that."""
    job_id = root.row.job_id
    found = None if job_id is None else await info.context.services.jobs.find(info.context.caller, job_id)
    return None if found is None else object_of(info, "Job", found)


async def _source_checkpoint(root: strawberry.Parent[Model], info: Info) -> object | None:
    """The checkpoint of which it was made, if that is there and the caller may see it."""
    services, job_id = info.context.services, root.row.job_id
    checkpoint = None if job_id is None else await services.promotions.checkpoint_of(job_id)
    found = None if checkpoint is None else await services.jobs.artifact(info.context.caller, checkpoint)
    return None if found is None else object_of(info, "JobArtifact", found)


async def _tests(
    root: strawberry.Parent[ModelService], info: Info, filter: AbCampaignFilter | None = None
) -> list[object]:
    """The A/B tests that it takes part in."""
    wish = (filter or AbCampaignFilter()).wish(str(root.project_id))
    found = await info.context.services.abtests.all(info.context.caller, wish)
    own = (item for item in found if root.id in [service.id for service in item.services])
    return [object_of(info, "Abcampaign", item) for item in own]


@strawberry.type
class Model:
    """A base model, an adapter, a draft (which answers as its target does), or a model at a provider."""

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
    training_run: object | None = strawberry.field(resolver=_training_run, graphql_type=JOB)
    source_checkpoint: object | None = strawberry.field(resolver=_source_checkpoint, graphql_type=ARTIFACT)

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
            is_spec_dec_draft=row.kind == DRAFT,
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
        """Of an adapter: its base model. Of a draft: the model or the adapter for which it drafts."""
        return await _model(info, self.row.backbone_id)

    @strawberry.field
    async def parent(self, info: Info) -> Model | None:
        """What it was trained from."""
        return await _model(info, self.row.parent_id)

    @strawberry.field
    async def model_services(self, info: Info, filter: ProjectFilter | None = None) -> list[ModelService]:
        """What it is in the projects that the caller may read; in archived ones if the filter wants them instead."""
        archived = filter is not None and bool(filter.is_archived)
        found = await info.context.services.deployments.of_model(info.context.caller, self.id, archived=archived)
        return [ModelService.of(bound) for bound in found]

    @strawberry.field
    def capabilities(self) -> list[ModelCapabilityFilter]:
        """What it can do."""
        return [ModelCapabilityFilter(name) for name in self.row.capabilities]

    @strawberry.field
    async def compute_config(self, info: Info) -> ModelComputeConfigOutput | None:
        """How it is run: an adapter as its base model, a draft as its target where nothing is set for itself, an
        external model as its provider pleases."""
        compute = compute_of(self.row, await self._base(info))
        if compute is None:
            return None
        return ModelComputeConfigOutput(
            tp=compute["tp"], kv_cache_len=compute["kv_cache_len"], max_seq_len=compute["max_seq_len"]
        )

    @strawberry.field
    async def compute_settings(self, info: Info) -> ModelComputeSettings:
        """What was set of it, for itself, its base model or its target; `tokensToGenerate` always for itself."""
        chosen = chosen_compute(self.row, await self._base(info))
        return ModelComputeSettings(
            tp=chosen.get("tp"),
            kv_cache_len=chosen.get("kv_cache_len"),
            max_seq_len=chosen.get("max_seq_len"),
            tokens_to_generate=self.row.compute.get(TOKENS_TO_GENERATE),
        )

    @strawberry.field
    async def activity(self, info: Info, timerange: TimeRange | None = None) -> Activity | None:
        """How much it was asked in the projects whose interactions the caller may read."""
        return await activity(info, timerange, model_id=self.id)

    @strawberry.field
    async def metrics(self, info: Info) -> list[MetricWithContext]:
        """What the projects that have it measure by; its completions alone count in their figures."""
        found = await info.context.services.scores.of_model(info.context.caller, self.id)
        return [MetricWithContext.of(item, self.id) for item in found]

    async def _base(self, info: Info) -> db.Model | None:
        """Of an adapter, a draft, or a draft of an adapter: whose weights answer."""
        found, above = None, self.row.backbone_id
        while above is not None:
            found = (await info.context.services.models.by_id([above]))[above]
            above = found.backbone_id
        return found

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

    row: strawberry.Private[db.ModelService]
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
    ab_campaigns: list[object] = strawberry.field(resolver=_tests, graphql_type=CAMPAIGNS)
    num_draft_steps: int | None
    """Tokens that are proposed at a time; null: none are."""

    @classmethod
    def of(cls, bound: Bound) -> ModelService:
        """From its rows."""
        row, model = bound.service, bound.model
        is_placed = bool(row.pools) or row.max_ttft_ms is not None
        placement = ModelPlacementOutput(compute_pools=row.pools, max_ttft_ms=row.max_ttft_ms) if is_placed else None
        return cls(
            row=row,
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
            num_draft_steps=num_proposals(model.kind, model.num_draft_steps, row.num_draft_steps) or None,
        )

    @strawberry.field
    async def system_prompt_template(self, info: Info) -> SystemPromptTemplate | None:
        """With what its chats begin."""
        if self.row.system_prompt_id is None:
            return None
        row = await info.context.services.system_prompts.by_id(self.row.system_prompt_id)
        return None if row is None else SystemPromptTemplate.of(row)

    @strawberry.field
    async def activity(self, info: Info, timerange: TimeRange | None = None) -> Activity | None:
        """How much it was asked in this project; null for who may not see the project's interactions."""
        return await activity(info, timerange, project_id=self.project_id, model_id=self.model.id)

    @strawberry.field
    async def metrics(self, info: Info) -> list[MetricWithContext]:
        """What the project measures by; the completions of this model alone count in their figures."""
        found = await info.context.services.scores.of_model(info.context.caller, self.model.id, self.project_id)
        return [MetricWithContext.of(item, self.model.id) for item in found]


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
class IntegerNumericCondition:
    """What a number must be. What is null does not count."""

    eq: LongInt | None = None
    neq: LongInt | None = None
    gt: LongInt | None = None
    gte: LongInt | None = None
    lt: LongInt | None = None
    lte: LongInt | None = None


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
    size: IntegerNumericCondition | None = None

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
            size={}
            if self.size is None
            else {name: bound for name, bound in vars(self.size).items() if bound is not None},
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
