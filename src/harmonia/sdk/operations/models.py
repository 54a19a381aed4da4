"""Models of the registry, and models as projects serve them."""

from __future__ import annotations

from harmonia.sdk.operations.base import Result, mutation, optional, query


class ProjectName(Result, frozen=True):
    """A project, in short."""

    id: str
    key: str
    name: str


class ComputeConfig(Result, frozen=True):
    """What one replica takes: GPUs (`tp`), and lengths in tokens."""

    tp: int
    kv_cache_len: int
    max_seq_len: int


class ComputeSettings(Result, frozen=True):
    """What was set of how a model is run; None: the default."""

    tp: int | None
    kv_cache_len: int | None
    max_seq_len: int | None
    tokens_to_generate: int | None


class Backbone(Result, frozen=True):
    """The model whose weights an adapter shares; or that, or the adapter, to which a draft proposes tokens."""

    id: str
    key: str
    name: str
    online: str


class Model(Result, frozen=True):
    """A model of the registry.

    `online`: ONLINE, DEGRADED, PENDING, SCALING, OFFLINE or ERROR, with `error` saying why. `size`: parameters.
    `is_spec_dec_draft`: it is a draft; what answers under its key is its `backbone`, which it makes faster.
    `compute_config` is how it runs, None for external models; `compute_settings` is what of it somebody set.
    """

    id: str
    key: str
    name: str
    online: str
    error: str | None
    is_external: bool
    provider_name: str
    is_adapter: bool
    is_spec_dec_draft: bool
    is_training: bool
    created_at: int
    family: str | None
    size: int | None
    compute_config: ComputeConfig | None
    compute_settings: ComputeSettings
    backbone: Backbone | None
    projects: list[ProjectName]


class ServicePlacement(Result, frozen=True):
    """The pools where a model may run, none for any, and the longest wait for its first token in milliseconds."""

    compute_pools: list[str]
    max_ttft_ms: int | None


class ModelService(Result, frozen=True):
    """A model in a project; the default one answers requests that name the project alone.

    `num_draft_steps`: tokens that are proposed at a time; None: none are.
    """

    id: str
    key: str
    name: str
    status: str
    is_default: bool
    desired_online: bool
    created_at: int
    placement: ServicePlacement | None
    num_draft_steps: int | None
    model: Model


class ServiceName(Result, frozen=True):
    """A model in a project, in short."""

    id: str
    key: str
    name: str


class Deployed(Result, frozen=True):
    """What deploying did."""

    model_service: ModelService
    warnings: list[str]


class BindingFailure(Result, frozen=True):
    """A model that could not be added, and why."""

    model: str
    reason: str


class Bound(Result, frozen=True):
    """Whether all models were added."""

    success: bool
    failures: list[BindingFailure]


MODELS = query("models", list[Model], filter="ModelFilter!")
MODEL = optional("model", Model, idOrKey="IdOrKey!")
ADD_MODEL = mutation("addModel", Model, input="AddModelInput!")
ADD_EXTERNAL = mutation("addExternalModel", Model, input="AddExternalModelInput!")
ADD_TO_PROJECT = mutation("addModelsToProject", Bound, input="AddModelsToProjectInput!")
REMOVE_FROM_PROJECT = mutation("removeModelFromProject", bool, input="RemoveModelFromProjectInput!")
DEPLOY = mutation("deployModel", Deployed, input="DeployModelInput!")
UPDATE_SERVICE = mutation("updateModelService", ModelService, input="UpdateModelService!")
UPDATE_COMPUTE = mutation("updateModelComputeConfig", Model, idOrKey="IdOrKey!", input="ModelComputeConfigInput!")
DELETE = mutation("deleteModel", bool, input="DeleteModelInput!")
TERMINATE = mutation("terminateModel", str, idOrKey="IdOrKey!", force="Boolean!")
