"""The application: routes, errors, telemetry, and the router's life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from harmonia.config.server import ServerConfig
from harmonia.router import Router
from harmonia.server.rest import chat, completions, embeddings, health, models
from harmonia.server.rest.context import Context, authenticate
from harmonia.server.rest.errors import install_handlers
from harmonia.server.rest.openapi import install_openapi
from harmonia.server.rest.telemetry import Telemetry

PREFIXES = ("/v1", "/api/v1")


def create_app(config: ServerConfig, router: Router) -> FastAPI:
    """The HTTP application in front of the workers that `router` knows."""
    context = Context(config, router)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await router.start()
        yield
        await router.close()

    app = FastAPI(
        title="Harmonia",
        version="1",
        description="OpenAI's interface in front of one engine.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.context = context
    app.add_middleware(Telemetry, metrics=context.metrics, prefixes=PREFIXES)
    app.include_router(health.router)
    for prefix in PREFIXES:
        for part in (chat, completions, embeddings, models):
            app.include_router(part.router, prefix=prefix, dependencies=[Depends(authenticate)])
    install_handlers(app)
    install_openapi(app)
    return app
