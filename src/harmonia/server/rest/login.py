"""Logging in and out with a browser."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel

from harmonia.server.rest.callers import KnownCaller, Server, cookie_name, require_same_origin, session_cookie
from harmonia.server.services.people.login import LOGIN_SECONDS
from harmonia.server.services.services import Services


class Provider(BaseModel):
    """A way to log in."""

    key: str
    name: str
    login_url: str
    """Where to send the browser; `?next=/page` names the page to show afterwards."""


class Membership(BaseModel):
    """A team, and what somebody is there."""

    team: str
    role: str


class Me(BaseModel):
    """Whoever asks."""

    id: uuid.UUID
    email: str
    name: str
    teams: list[Membership]


router = APIRouter(prefix="/auth", tags=["auth"])


@router.get("/providers")
async def providers(services: Server) -> list[Provider]:
    """Ways to log in."""
    logins = services.logins
    return [
        Provider(key=item.key, name=item.name, login_url=logins.root_url + logins.login_path(item.key))
        for item in logins.providers
    ]


@router.get("/login/{key}", status_code=303, response_class=RedirectResponse)
async def login(services: Server, key: str, page: Annotated[str, Query(alias="next")] = "/") -> Response:
    """Send the browser to the provider. next: the page to show afterwards, a path of this server."""
    begun = await services.logins.begin(key, page)
    response = RedirectResponse(begun.address, 303)
    _set_cookie(services, response, "login", begun.cookie, LOGIN_SECONDS)
    return _private(response)


@router.get("/login/{key}/callback", status_code=303, response_class=RedirectResponse)
async def callback(services: Server, key: str, request: Request) -> Response:
    """Where the provider sends the browser back to."""
    cookie = request.cookies.get(cookie_name(services, "login"))
    done = await services.logins.finish(key, request.query_params, cookie, session_cookie(services, request))
    response = RedirectResponse(done.destination, 303)
    _drop_cookie(services, response, "login")
    _set_cookie(services, response, "session", done.cookie, services.config.auth.session.expiration_seconds)
    return _private(response)


@router.post("/logout", status_code=204)
async def logout(services: Server, request: Request) -> Response:
    """End the session."""
    response = Response(status_code=204)
    cookie = session_cookie(services, request)
    if cookie is not None:
        require_same_origin(services, request)
        await services.logins.end(cookie)
        _drop_cookie(services, response, "session")
    return _private(response)


@router.get("/me")
async def me(services: Server, caller: KnownCaller, response: Response) -> Me:
    """Whoever asks, by key or cookie."""
    _private(response)
    memberships = (await services.people.memberships([caller.user_id]))[caller.user_id]
    user = await services.people.me(caller)
    assert user is not None  # callers are users
    teams = [Membership(team=item.team.key, role=item.role.role.key) for item in memberships]
    return Me(id=user.id, email=user.email, name=user.name, teams=teams)


def _set_cookie(services: Services, response: Response, purpose: str, value: str, seconds: int) -> None:
    name, secure = cookie_name(services, purpose), services.config.auth.session.secure
    response.set_cookie(name, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="lax")


def _drop_cookie(services: Services, response: Response, purpose: str) -> None:
    name, secure = cookie_name(services, purpose), services.config.auth.session.secure
    response.delete_cookie(name, path="/", secure=secure, httponly=True, samesite="lax")


def _private(response: Response) -> Response:
    """Nothing between here and the browser keeps it, and no other site hears where it came from."""
    response.headers["cache-control"] = "no-store"
    response.headers["referrer-policy"] = "no-referrer"
    return response
