"""Who calls a route of the control plane, and the services behind it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from harmonia.server.rest.callers import caller_of
from harmonia.server.services.access import Caller
from harmonia.server.services.services import Services


def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


Server = Annotated[Services, Depends(_services)]


async def _caller(request: Request, services: Server) -> Caller:
    return await caller_of(services, request)


KnownCaller = Annotated[Caller, Depends(_caller)]
"""Whoever owns the key or the session of the request; 401 if nobody does."""
