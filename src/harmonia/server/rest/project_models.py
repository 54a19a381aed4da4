"""`GET /models` over projects, for OpenAI's clients that let people choose."""

from __future__ import annotations

from fastapi import APIRouter, Response

from harmonia.server.rest.callers import KnownCaller, Server
from harmonia.server.rest.context import json_response
from harmonia.server.rest.openapi import describe
from harmonia.server.rest.schemas import ModelCard, ModelList

router = APIRouter(tags=["inference"])


@router.get("/models", **describe(None, ModelList))
async def list_project_models(services: Server, caller: KnownCaller) -> Response:
    """Every model that the caller may ask, as `project/model`."""
    workers = services.serving.router
    cards = [
        ModelCard(
            id=f"{project}/{bound.service.key}",
            created=bound.service.created_at // 1000,
            max_model_len=workers.pick(bound.model.key).description.max_seq_len
            if workers.serves(bound.model.key)
            else None,
        )
        for project, bound in await services.deployments.askable(caller)
    ]
    return json_response(ModelList(data=cards))
