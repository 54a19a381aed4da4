"""Adding models, and serving them in projects."""

from __future__ import annotations

import uuid
from typing import TypeVar

import strawberry
from strawberry.scalars import JSON

from harmonia.errors import InvalidRequestError
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.jobs import Job
from harmonia.server.graphql.models import ExternalModelProviderName, Model, ModelService
from harmonia.server.graphql.scalars import IdOrKey, Key
from harmonia.server.services.jobs.imports import NewImport
from harmonia.server.services.models.deployments import Keep, Placement, ServiceChanges
from harmonia.server.services.models.models import NewExternalModel, NewModel

T = TypeVar("T")


@strawberry.type
class ModelBindingFailure:
    """A model that could not be put into a project."""

    model: str
    reason: str


@strawberry.type
class AddModelsToProjectResult:
    """Whether all models are in the project."""

    success: bool
    failures: list[ModelBindingFailure]


@strawberry.type
class DeployModelResult:
    """A model that is served from now on, and what its user should know."""

    model_service: ModelService
    warnings: list[str]


@strawberry.input
class AddModelInput:
    """A model to register. path: a folder or file of the server, or `model_registry://KEY`."""

    path: str
    name: str
    key: Key | None = None


@strawberry.input
class AddHFModelInput:
    """A model of Hugging Face's hub."""

    model_id: str
    output_model_name: str
    hf_token: str
    output_model_key: Key | None = None
    compute_pool: IdOrKey | None = None
    num_gpus: int = 0

    @property
    def new(self) -> NewImport:
        """For services. An import needs no GPUs, whatever their number."""
        return NewImport(
            hub_id=self.model_id,
            name=self.output_model_name,
            key=self.output_model_key,
            token=self.hf_token,
            compute_pool=self.compute_pool,
        )


@strawberry.input
class OpenAIProviderDataInput:
    """A model behind OpenAI's interface."""

    api_key: str
    external_model_id: str
    endpoint: str | None = None
    extra_params: JSON | None = None


@strawberry.input
class GoogleProviderDataInput:
    """A model of Google's."""

    api_key: str
    external_model_id: str
    endpoint: str | None = None


@strawberry.input
class AnthropicProviderDataInput:
    """A model of Anthropic's."""

    api_key: str
    external_model_id: str
    endpoint: str | None = None
    extra_params: JSON | None = None


@strawberry.input
class ModelProviderDataInput:
    """What the provider of an external model wants to know: one of these."""

    open_ai: OpenAIProviderDataInput | None = strawberry.field(name="openAI", default=None)
    legacy_open_ai: OpenAIProviderDataInput | None = strawberry.field(name="legacyOpenAI", default=None)
    google: GoogleProviderDataInput | None = None
    anthropic: AnthropicProviderDataInput | None = None


@strawberry.input
class AddExternalModelInput:
    """A model at a provider."""

    name: str
    provider: ExternalModelProviderName
    provider_data: ModelProviderDataInput | None = None
    description: str | None = None

    @property
    def new(self) -> NewExternalModel:
        """For services; `InvalidRequestError` without the data of the provider that is named."""
        given = self.provider_data or ModelProviderDataInput()
        by_provider = {
            ExternalModelProviderName.OPEN_AI: given.open_ai,
            ExternalModelProviderName.LEGACY_OPEN_AI: given.legacy_open_ai or given.open_ai,
            ExternalModelProviderName.GOOGLE: given.google,
            ExternalModelProviderName.ANTHROPIC: given.anthropic,
        }
        data = by_provider[self.provider]
        if data is None:
            raise InvalidRequestError(
                f"providerData: give the key and the model id for {self.provider.value}", field="providerData"
            )
        extra = None if isinstance(data, GoogleProviderDataInput) else data.extra_params
        if extra is not None and not isinstance(extra, dict):
            raise InvalidRequestError("extraParams: must be an object", field="extraParams")
        return NewExternalModel(
            name=self.name,
            provider=self.provider.value,
            external_model_id=data.external_model_id,
            api_key=data.api_key,
            endpoint=data.endpoint,
            extra_params=extra,
        )


@strawberry.input
class ModelComputeConfigInput:
    """How a model shall be run. What is left out stays, null takes it back to its default."""

    tp: int | None = strawberry.UNSET
    kv_cache_len: int | None = strawberry.UNSET
    max_seq_len: int | None = strawberry.UNSET
    tokens_to_generate: int | None = strawberry.UNSET

    @property
    def changes(self) -> dict[str, int | None]:
        """What was given."""
        return {name: value for name, value in vars(self).items() if value is not strawberry.UNSET}


@strawberry.input
class UpdateModelInput:
    """What the registry shall say of a model."""

    model: IdOrKey
    published: bool | None = None
    stable: bool | None = None


@strawberry.input
class DeleteModelInput:
    """A model that is wanted no longer."""

    model: IdOrKey


@strawberry.input
class AddModelsToProjectInput:
    """Models to put into a project."""

    project: IdOrKey
    models: list[IdOrKey]


@strawberry.input
class RemoveModelFromProjectInput:
    """A model to take out of a project."""

    project: IdOrKey
    model: IdOrKey


@strawberry.input
class ModelPlacementInput:
    """Where a model may run, and how many milliseconds its first token may take.

    What is left out stays; null takes it back to any pool, and to the server's own bound.
    """

    compute_pools: list[IdOrKey] | None = strawberry.UNSET
    max_ttft_ms: int | None = strawberry.UNSET

    @property
    def placement(self) -> Placement:
        """For services."""
        return Placement(_kept(self.compute_pools), _kept(self.max_ttft_ms))


@strawberry.input
class SpeculativeDecodingInput:
    """How many tokens are proposed at a time, from 1 to 8: by the draft, to an adapter also by one of its base model
    that is deployed, or from the conversation without one."""

    num_draft_steps: int


@strawberry.input
class DeployModelInput:
    """A model to serve in a project. wait: answer when it is online."""

    project: IdOrKey
    model: IdOrKey
    placement: ModelPlacementInput | None = None
    wait: bool = False
    speculative_decoding: SpeculativeDecodingInput | None = None


@strawberry.input
class UpdateModelService:
    """What shall be different about a model in a project. systemPromptTemplate: null takes it away."""

    project: IdOrKey
    model_service: IdOrKey
    is_default: bool | None = None
    desired_online: bool | None = None
    name: str | None = None
    system_prompt_template: uuid.UUID | None = strawberry.UNSET
    placement: ModelPlacementInput | None = None
    speculative_decoding: SpeculativeDecodingInput | None = None

    @property
    def changes(self) -> ServiceChanges:
        """For services."""
        return ServiceChanges(
            is_default=self.is_default,
            desired_online=self.desired_online,
            name=self.name,
            placement=_placement(self.placement),
            num_draft_steps=_steps(self.speculative_decoding),
            system_prompt=_kept(self.system_prompt_template),
        )


def _kept(value: T | None) -> T | Keep | None:
    return Keep.IT if value is strawberry.UNSET else value


def _placement(given: ModelPlacementInput | None) -> Placement | None:
    return None if given is None else given.placement


def _steps(given: SpeculativeDecodingInput | None) -> int | None:
    return None if given is None else given.num_draft_steps


@strawberry.type
class ModelMutation:
    """Changing the registry, and what projects do with it."""

    @strawberry.mutation
    async def add_model(self, info: Info, input: AddModelInput) -> Model:
        """Register a model of the server's disk."""
        new = NewModel(path=input.path, name=input.name, key=input.key)
        return Model.of(await info.context.services.models.add(info.context.caller, new))

    @strawberry.mutation
    async def add_external_model(self, info: Info, input: AddExternalModelInput) -> Model:
        """Register a model at a provider."""
        return Model.of(await info.context.services.models.add_external(info.context.caller, input.new))

    @strawberry.mutation
    async def import_hf_model(self, info: Info, input: AddHFModelInput) -> Job:
        """A job that brings a model from Hugging Face's hub into the registry."""
        services = info.context.services
        found = await services.jobs.find(
            info.context.caller, await services.imports.create(info.context.caller, input.new)
        )
        assert found is not None
        return Job.of(found)

    @strawberry.mutation
    async def delete_model(self, info: Info, input: DeleteModelInput) -> bool:
        """Take a model out of the registry, and remove its files if this server made or brought them."""
        await info.context.services.deletion.delete(info.context.caller, input.model)
        return True

    @strawberry.mutation
    async def update_model(self, info: Info, input: UpdateModelInput) -> Model:
        """Change what the registry says of a model."""
        models = info.context.services.models
        row = await models.update(info.context.caller, input.model, published=input.published, stable=input.stable)
        return Model.of(row)

    @strawberry.mutation
    async def update_model_compute_config(
        self, info: Info, id_or_key: IdOrKey, input: ModelComputeConfigInput
    ) -> Model:
        """Change how a model is run. One that is online is replaced by a new worker while it serves."""
        services = info.context.services
        row = await services.models.set_compute(info.context.caller, id_or_key, input.changes)
        services.serving.wake()
        return Model.of(row)

    @strawberry.mutation
    async def add_models_to_project(self, info: Info, input: AddModelsToProjectInput) -> AddModelsToProjectResult:
        """Put models into a project."""
        deployments = info.context.services.deployments
        failures = await deployments.add(info.context.caller, input.project, input.models)
        found = [ModelBindingFailure(model=model, reason=reason) for model, reason in failures.items()]
        return AddModelsToProjectResult(success=not found, failures=found)

    @strawberry.mutation
    async def deploy_model(self, info: Info, input: DeployModelInput) -> DeployModelResult:
        """Serve a model in a project."""
        deployed = await info.context.services.deployments.deploy(
            info.context.caller,
            input.project,
            input.model,
            placement=_placement(input.placement),
            num_draft_steps=_steps(input.speculative_decoding),
            wait=input.wait,
        )
        return DeployModelResult(model_service=ModelService.of(deployed.bound), warnings=deployed.warnings)

    @strawberry.mutation
    async def update_model_service(self, info: Info, input: UpdateModelService) -> ModelService:
        """Change a model in a project."""
        deployments = info.context.services.deployments
        bound = await deployments.change(info.context.caller, input.project, input.model_service, input.changes)
        return ModelService.of(bound)

    @strawberry.mutation
    async def remove_model_from_project(self, info: Info, input: RemoveModelFromProjectInput) -> bool:
        """Take a model out of a project."""
        deployments = info.context.services.deployments
        return await deployments.remove(info.context.caller, input.project, input.model)

    @strawberry.mutation
    async def terminate_model(self, info: Info, id_or_key: IdOrKey, force: bool = False) -> str:
        """Switch a model off in every project."""
        return await info.context.services.deployments.terminate(info.context.caller, id_or_key, force=force)
