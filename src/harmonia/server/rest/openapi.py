"""The OpenAPI document, made from the same structs that read and write the bodies."""

from __future__ import annotations

from typing import TypedDict

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from harmonia.server.rest import schemas
from harmonia.server.rest.schemas.fields import ErrorResponse, RequestModel, ResponseModel

JsonObject = dict[str, object]

_ERRORS = {
    400: "A field is wrong; `param` names it",
    401: "No valid API key",
    404: "No such model",
    408: "A time limit fired; the message names it and how to raise it",
    409: "No room for one more adapter",
    413: "The body is too large",
    429: "The queue is full; `Retry-After` says when to come back",
    500: "An error of the server",
    503: "Still loading, shutting down, or the worker died; `Retry-After` says when to come back",
}


class RouteDocs(TypedDict):
    """Keyword arguments of a route that document it."""

    responses: dict[int | str, JsonObject]
    openapi_extra: JsonObject | None


def describe(
    request: type[RequestModel] | None,
    response: type[ResponseModel],
    streams: bool = False,
    unready: type[ResponseModel] = ErrorResponse,
) -> RouteDocs:
    """The documentation of a route."""
    content: JsonObject = {"application/json": {"schema": _ref(response)}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[int | str, JsonObject] = {200: {"description": "Success", "content": content}}
    for status, description in _ERRORS.items():
        error: JsonObject = {"application/json": {"schema": _ref(unready if status == 503 else ErrorResponse)}}
        responses[status] = {"description": description, "content": error}
    body: JsonObject | None = None
    if request is not None:
        body = {"requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}}}
    return RouteDocs(responses=responses, openapi_extra=body)


def install_openapi(app: FastAPI) -> None:
    """Make the application serve a document that names every schema and both ways to authenticate."""

    def openapi() -> JsonObject:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _ref(model: type[msgspec.Struct]) -> JsonObject:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _document(app: FastAPI) -> JsonObject:
    document: JsonObject = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    models = [getattr(schemas, name) for name in schemas.__all__]
    _, components = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    document["components"] = {
        "schemas": components,
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    document["security"] = [{"key": []}, {}]
    paths = document["paths"]
    assert isinstance(paths, dict)
    for operations in paths.values():
        for operation in operations.values():
            # FastAPI promises its own shape of validation errors; ours are 400.
            operation["responses"].pop("422", None)
    return document
