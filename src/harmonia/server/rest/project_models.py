"""`GET /models` over projects, for OpenAI's clients that let people choose."""

from __future__ import annotations

from fastapi import APIRouter, Response

from harmonia.errors import UnknownModelError
from harmonia.server.rest.callers import KnownCaller, Server
from harmonia.server.rest.context import json_response
from harmonia.server.rest.openapi import describe
from harmonia.server.rest.schemas import ModelCard, ModelList
from harmonia.server.services.models.deployments import Bound
from harmonia.server.services.services import Services

router = APIRouter(tags=["inference"])


@router.get("/models", **describe(None, ModelList))
async def list_project_models(services: Server, caller: KnownCaller) -> Response:
    """Every model that the caller may ask, as `project/model`."""
    askable = await services.deployments.askable(caller)
    return json_response(ModelList(data=[_card(services, project, bound) for project, bound in askable]))


@router.get("/models/{name:path}", **describe(None, ModelCard))
async def retrieve_project_model(name: str, services: Server, caller: KnownCaller) -> Response:
    """One of them; a project alone stands for its default model."""
    for project, bound in await services.deployments.askable(caller):
        if name == f"{project}/{bound.service.key}" or (name == project and bound.service.is_default):
            return json_response(_card(services, project, bound))
    raise UnknownModelError(
        f"there is no model {name!r} that you may ask; GET /models lists those that you may", field="model"
    )


def _card(services: Services, project: str, bound: Bound) -> ModelCard:
    workers, key = services.serving.router, bound.model.key
    return ModelCard(
        id=f"{project}/{bound.service.key}",
        created=bound.service.created_at // 1000,
        max_model_len=workers.pick(key).description.max_seq_len if workers.serves(key) else None,
    )
