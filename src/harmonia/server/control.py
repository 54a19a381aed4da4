"""The control plane's application: what `harmonia up` serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from harmonia.server.graphql.schema import make_router
from harmonia.server.rest.errors import install_handlers
from harmonia.server.services.services import Services

REST = "/api/v1"


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
    app.include_router(make_router(services))
    install_handlers(app)
    return app
