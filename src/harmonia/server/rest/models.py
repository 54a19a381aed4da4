"""Models, adapters and sessions."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from harmonia.errors import UnknownModelError
from harmonia.protocol.messages import ModelInfo
from harmonia.router import Router
from harmonia.server.rest.body import read_body
from harmonia.server.rest.context import Api, json_response
from harmonia.server.rest.openapi import describe
from harmonia.server.rest.schemas import Deleted, LoadAdapterRequest, ModelCard, ModelList

router = APIRouter(tags=["models"])


@router.get("/models", **describe(None, ModelList))
async def list_models(api: Api) -> Response:
    """Every backbone and adapter that answers."""
    return json_response(ModelList(data=[_card(model, api.router) for model in api.router.models()]))


@router.get("/models/{model:path}", **describe(None, ModelCard))
async def retrieve_model(model: str, api: Api) -> Response:
    """One of them."""
    models = api.router.models()
    for info in models:
        if info.key == model:
            return json_response(_card(info, api.router))
    names = ", ".join(info.key for info in models) or "none"
    raise UnknownModelError(f"no model is named {model!r}; this server has: {names}", field="model")


@router.post("/adapters", **describe(LoadAdapterRequest, ModelCard))
async def load_adapter(request: Request, api: Api) -> Response:
    """Load a PEFT adapter while serving."""
    body = await read_body(request, LoadAdapterRequest, api.config.server.max_body_bytes)
    info = await api.router.load_adapter(body.key, body.path, body.model)
    return json_response(_card(info, api.router))


@router.delete("/adapters/{key:path}", **describe(None, Deleted))
async def unload_adapter(key: str, api: Api) -> Response:
    """Free an adapter's slot; its running requests end with an error."""
    await api.router.unload_adapter(key)
    return json_response(Deleted(id=key, object="adapter"))


@router.delete("/sessions/{session_id:path}", **describe(None, Deleted))
async def close_session(session_id: str, api: Api) -> Response:
    """Give up a session's claim on the cache."""
    await api.router.close_session(session_id)
    return json_response(Deleted(id=session_id, object="session"))


def _card(model: ModelInfo, router: Router) -> ModelCard:
    return ModelCard(
        id=model.key,
        created=model.created,
        parent=model.parent,
        version=model.version,
        max_model_len=router.pick(model.key).description.max_seq_len,
    )
