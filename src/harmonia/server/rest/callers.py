"""Who a request is from: a key in its header, or the session of a browser; and the services behind a route."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request

from harmonia.errors import PermissionDeniedError
from harmonia.server.services.access import Caller, bearer
from harmonia.server.services.services import Services

_READS = frozenset({"GET", "HEAD", "OPTIONS"})


async def caller_of(services: Services, request: Request) -> Caller:
    """The caller by key, else by cookie. Raises `AuthenticationError`, and `PermissionDeniedError` for a request that
    another site made a browser send."""
    authorization = request.headers.get("authorization")
    cookie = session_cookie(services, request)
    if authorization is not None or cookie is None:
        return await services.access.caller(bearer(authorization))
    require_same_origin(services, request)
    return await services.logins.caller(cookie)


def session_cookie(services: Services, request: Request) -> str | None:
    """The cookie of somebody who logged in."""
    return request.cookies.get(cookie_name(services, "session")) or None


def cookie_name(services: Services, purpose: str) -> str:
    """Over HTTPS with the prefix that keeps other hosts of the domain from setting it."""
    prefix = "__Host-" if services.config.auth.session.secure else ""
    return f"{prefix}harmonia_{purpose}"


def require_same_origin(services: Services, request: Request) -> None:
    """Cookies come along with whatever any page sends, so what changes something must come from a page of this server.

    Browsers tell that in `Sec-Fetch-Site`, older ones and those without HTTPS in `Origin`.
    """
    if request.method in _READS:
        return
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        allowed = site == "same-origin"
    else:
        origin = urlsplit(request.headers.get("origin", "")).netloc
        ours = {request.headers.get("host"), urlsplit(services.logins.root_url).netloc}
        allowed = bool(origin) and origin in ours
    if not allowed:
        raise PermissionDeniedError(
            "requests with the cookie of the log-in must come from a page of this server; programs send a key instead"
        )


async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


Server = Annotated[Services, Depends(_services)]


async def _caller(request: Request, services: Server) -> Caller:
    return await caller_of(services, request)


KnownCaller = Annotated[Caller, Depends(_caller)]
"""Whoever owns the key or the session of the request; 401 if nobody does."""
