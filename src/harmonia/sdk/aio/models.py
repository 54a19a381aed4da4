"""Models of the registry and of projects."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from harmonia.errors import DeadlineExceededError, EntityNotFoundError, InvalidRequestError, UnavailableError
from harmonia.log import get_logger
from harmonia.sdk.aio.resource import AsyncResource
from harmonia.sdk.inputs import ComputeChanges, ModelFilter, Placement, checked
from harmonia.sdk.operations import jobs, models, projects
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.jobs import Job
from harmonia.sdk.operations.models import Model, ModelService
from harmonia.sdk.waiting import Deadline

PROVIDERS = {
    "open_ai": ("OPEN_AI", "openAI"),
    "legacy_open_ai": ("LEGACY_OPEN_AI", "legacyOpenAI"),
    "google": ("GOOGLE", "google"),
    "anthropic": ("ANTHROPIC", "anthropic"),
}
READY = frozenset({"ONLINE", "DEGRADED"})
"""States in which a model answers."""
DEPLOYMENT_TIMEOUT_S = 600.0

log = get_logger(__name__)


class AsyncModels(AsyncResource):
    """`adaptive.models`: models by their keys."""

    async def list(self, filter: ModelFilter | None = None) -> Sequence[Model]:
        """The models of the registry."""
        return await self._transport.execute(models.MODELS, filter=checked(filter or {}, ModelFilter, "filter"))

    async def get(self, model: str) -> Model | None:
        """One of them."""
        return await self._transport.execute(models.MODEL, idOrKey=model)

    async def add(self, path: str, name: str, key: str | None = None) -> Model:
        """Put a model from a folder or file of the server into the registry; its key is made of its name."""
        return await self._transport.execute(models.ADD_MODEL, input=given(path=path, name=name, key=key))

    async def add_external(
        self,
        name: str,
        external_model_id: str,
        api_key: str,
        provider: Literal["open_ai", "legacy_open_ai", "google", "anthropic"],
        endpoint: str | None = None,
        extra_params: Mapping[str, Any] | None = None,
    ) -> Model:
        """A model that somebody else serves; its key is made of its name."""
        if provider not in PROVIDERS:
            raise InvalidRequestError(
                f"there is no provider {provider!r}; there are {', '.join(PROVIDERS)}", field="provider"
            )
        kind, field = PROVIDERS[provider]
        if extra_params is not None and provider == "google":
            raise InvalidRequestError("models of google take no extra_params", field="extra_params")
        data = given(apiKey=api_key, externalModelId=external_model_id, endpoint=endpoint, extraParams=extra_params)
        body = {"name": name, "provider": kind, "providerData": {field: data}}
        return await self._transport.execute(models.ADD_EXTERNAL, input=body)

    async def add_hf_model(
        self,
        hf_model_id: str,
        output_model_name: str,
        output_model_key: str | None = None,
        hf_token: str = "",
        compute_pool: str | None = None,
    ) -> Job:
        """Import a model of Hugging Face's hub, or of a mirror that the server uses.

        hf_model_id: `OWNER/NAME`, or `OWNER/NAME/FILE` for one GGUF file of several. hf_token: for models that not
        everybody may read. The job that does it has no project; `jobs.wait` waits for it, and its error says what is
        wrong. What came of one that failed is kept for the next import under the same key.
        """
        body = given(
            modelId=hf_model_id,
            outputModelName=output_model_name,
            outputModelKey=output_model_key,
            hfToken=hf_token,
            computePool=compute_pool,
        )
        return await self._transport.execute(jobs.IMPORT_MODEL, input=body)

    async def add_to_project(self, model: str, project: str | None = None) -> None:
        """Make a model one of a project's, without starting it; InvalidRequestError says why it cannot be."""
        body = {"project": self._project(project), "models": [model]}
        bound = await self._transport.execute(models.ADD_TO_PROJECT, input=body)
        if not bound.success:
            reasons = "; ".join(f"{failure.model}: {failure.reason}" for failure in bound.failures)
            raise InvalidRequestError(f"cannot add the model: {reasons}", field="model")

    async def deploy(
        self,
        model: str,
        wait: bool = False,
        make_default: bool = False,
        project: str | None = None,
        placement: Placement | None = None,
        num_draft_steps: int | None = None,
        timeout_s: float = DEPLOYMENT_TIMEOUT_S,
    ) -> ModelService:
        """Serve a model in a project.

        wait: return when it answers, after `timeout_s` seconds at most (DeadlineExceededError; the deployment goes on).
        make_default: let it answer requests that name the project alone. num_draft_steps: tokens to propose per step, 1
        to 8: by its draft, for a model that `specdec_alignment` made; by a draft of its base model that is deployed,
        for an adapter; else from the conversation itself. What the server warns of is logged.
        """
        chosen = self._project(project)
        body = given(
            project=chosen,
            model=model,
            placement=_placement(placement),
            speculativeDecoding=_draft(num_draft_steps),
        )
        deployed = await self._transport.execute(models.DEPLOY, input=body)
        for warning in deployed.warnings:
            log.warning("%s", warning)
        service = deployed.model_service
        if make_default:
            service = await self.update(model, is_default=True, project=chosen)
        if wait:
            await self.wait(model, timeout_s)
            service = await self._service(chosen, service.id) or service
        return service

    async def attach(
        self,
        model: str,
        wait: bool = False,
        make_default: bool = False,
        project: str | None = None,
        placement: Placement | None = None,
        num_draft_steps: int | None = None,
        timeout_s: float = DEPLOYMENT_TIMEOUT_S,
    ) -> ModelService:
        """`add_to_project`, then `deploy`."""
        await self.add_to_project(model, project)
        return await self.deploy(model, wait, make_default, project, placement, num_draft_steps, timeout_s)

    async def wait(self, model: str, timeout_s: float = DEPLOYMENT_TIMEOUT_S) -> Model:
        """Until a model answers; UnavailableError with the server's words if it fails."""
        deadline = Deadline(timeout_s)
        while True:
            found = await self.get(model)
            if found is None:
                raise EntityNotFoundError(f"Model {model!r} does not exist", entity="model")
            if found.online in READY:
                return found
            if found.online == "ERROR":
                why = found.error or "the server does not say why"
                raise UnavailableError(f"model {model!r} failed to start: {why}")
            if deadline.has_passed:
                raise DeadlineExceededError(
                    f"model {model!r} is {found.online} after {timeout_s:g} s; it goes on starting, and "
                    "models.wait(model, timeout_s=...) waits longer",
                    limit="timeout_s",
                )
            await asyncio.sleep(deadline.pause())

    async def update(
        self,
        model: str,
        is_default: bool | None = None,
        desired_online: bool | None = None,
        project: str | None = None,
        placement: Placement | None = None,
        num_draft_steps: int | None = None,
    ) -> ModelService:
        """Change how a project serves a model.

        What is None, or missing in `placement`, stays as it is; None in `placement` takes back to the default.
        """
        chosen = self._project(project)
        body = given(
            project=chosen,
            modelService=model,
            isDefault=is_default,
            desiredOnline=desired_online,
            placement=_placement(placement),
            speculativeDecoding=_draft(num_draft_steps),
        )
        return await self._transport.execute(models.UPDATE_SERVICE, input=body)

    async def update_compute_config(self, model: str, compute_config: ComputeChanges) -> Model:
        """Change how a model is run, in all projects and recipes that say nothing else.

        What is not named stays as it is; None takes back to the default.
        """
        body = checked(compute_config, ComputeChanges, "compute_config", with_nulls=True)
        return await self._transport.execute(models.UPDATE_COMPUTE, idOrKey=model, input=body)

    async def detach(self, model: str, project: str | None = None) -> bool:
        """Take a model out of a project; one that is in no other and not published is removed from storage."""
        body = {"project": self._project(project), "model": model}
        return await self._transport.execute(models.REMOVE_FROM_PROJECT, input=body)

    async def delete(self, model: str) -> bool:
        """Take a model out of the registry, and remove its files if the server made or imported them.

        InvalidRequestError names what still needs it: projects, jobs, adapters, graders.
        """
        return await self._transport.execute(models.DELETE, input={"model": model})

    async def terminate(self, model: str, force: bool = False) -> str:
        """Unload a model everywhere; `force` if several projects want it online."""
        return await self._transport.execute(models.TERMINATE, idOrKey=model, force=force)

    async def _service(self, project: str, model: str) -> ModelService | None:
        found = await self._transport.execute(projects.PROJECT_MODELS, idOrKey=project)
        services = [] if found is None else found.model_services
        return next((item for item in services if model in (item.key, item.id, item.model.key, item.model.id)), None)


def _placement(wanted: Placement | None) -> dict[str, Any] | None:
    return checked(wanted, Placement, "placement", with_nulls=True) if wanted else None


def _draft(num_draft_steps: int | None) -> dict[str, int] | None:
    return None if num_draft_steps is None else {"numDraftSteps": num_draft_steps}
