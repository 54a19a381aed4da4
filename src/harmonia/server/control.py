"""The control plane's application: what `harmonia up` serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from harmonia.server.graphql.schema import make_router
from harmonia.server.rest import (
    chat,
    completions,
    datasets,
    embeddings,
    gateway,
    graders,
    interactions,
    jobs,
    login,
    monitoring,
    project_models,
    recipes,
    selections,
    uploads,
)
from harmonia.server.rest.callers import cookie_name
from harmonia.server.rest.context import Context
from harmonia.server.rest.errors import install_handlers
from harmonia.server.rest.limits import BodyLimit, RateLimit
from harmonia.server.rest.operations import make_operations_router
from harmonia.server.rest.project_target import project_target
from harmonia.server.rest.request_id import RequestIds
from harmonia.server.rest.telemetry import Telemetry
from harmonia.server.services.services import Services
from harmonia.server.services.telemetry import Metrics

REST = "/api/v1"
OPENAI = "/v1"
"""Where OpenAI's clients look when they are given the address alone."""


def create_control_app(services: Services) -> FastAPI:
    """REST and GraphQL over the services, which begin and end with the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await services.start()
        yield
        await services.close()

    app = FastAPI(
        title="Harmonia",
        version="1",
        description="Projects, models, deployments, jobs and people around one engine.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.metrics = metrics = Metrics()
    target, pool_of = partial(project_target, services), services.allotments.pool_of
    app.state.context = Context(services.config, services.serving.router, target, pool_of)
    _install_limits(app, services)
    app.add_middleware(Telemetry, metrics=metrics, prefixes=(REST, OPENAI))
    app.add_middleware(RequestIds)
    app.include_router(make_operations_router(services, metrics))
    app.include_router(make_router(services))
    for prefix in (REST, OPENAI):
        for part in (chat, completions, embeddings, project_models):
            app.include_router(part.router, prefix=prefix)
    app.include_router(monitoring.router, prefix=REST)
    app.include_router(recipes.router, prefix=REST)
    app.include_router(jobs.router, prefix=REST)
    app.include_router(gateway.router, prefix=REST)
    app.include_router(uploads.router, prefix=REST)
    app.include_router(datasets.router, prefix=REST)
    app.include_router(interactions.router, prefix=REST)
    app.include_router(selections.router, prefix=REST)
    app.include_router(graders.router, prefix=REST)
    app.include_router(login.router, prefix=REST)
    install_handlers(app)
    return app


def create_internal_app(app: FastAPI) -> FastAPI:
    """`/health` and `/metrics` of an application, for a port that only operators reach."""
    internal = FastAPI(title="Harmonia, for operators", version="1", openapi_url=None)
    internal.include_router(make_operations_router(app.state.services, app.state.metrics))
    install_handlers(internal)
    return internal


def _install_limits(app: FastAPI, services: Services) -> None:
    server = services.config.server
    app.add_middleware(BodyLimit, max_bytes=server.max_body_bytes, max_upload_bytes=server.max_upload_bytes)
    if server.requests_per_second is not None:
        cookie = cookie_name(services, "session")
        app.add_middleware(RateLimit, per_second=server.requests_per_second, cookie=cookie)
