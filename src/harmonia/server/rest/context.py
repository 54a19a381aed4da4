"""What every route needs, and how it gets it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request, Response

from harmonia.config.server import ServerConfig
from harmonia.router import Router
from harmonia.server.rest.schemas.fields import ResponseModel
from harmonia.server.rest.sse import to_json
from harmonia.server.rest.target import FindTarget, named_target
from harmonia.server.services.people.auth import KeyRing
from harmonia.server.services.telemetry import POOL, Metrics


class Context:
    """The parts of the server that requests use."""

    def __init__(
        self,
        config: ServerConfig,
        router: Router,
        find_target: FindTarget = named_target,
        pool_of: Callable[[str], str] = lambda _: POOL,
    ) -> None:
        """find_target: says which model answers a request, and refuses who may not ask it. pool_of: in which compute
        pool a replica runs."""
        self.config = config
        self.pool_of = pool_of
        self.router = router
        self.find_target = find_target
        self.keys = KeyRing(config.api_keys)
        self.metrics = Metrics()


# Dependencies are coroutines: FastAPI gives the others a hop to a thread each.
async def _context(request: Request) -> Context:
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


async def authenticate(request: Request) -> None:
    """Refuse a request without a valid key."""
    (await _context(request)).keys.check(request.headers.get("authorization"))


Api = Annotated[Context, Depends(_context)]


def json_response(body: ResponseModel) -> Response:
    """A struct as a JSON response."""
    return Response(to_json(body), media_type="application/json")
