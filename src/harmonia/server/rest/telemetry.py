"""Measures every HTTP request. Plain ASGI: a middleware that wraps responses would cost time per token."""

from __future__ import annotations

import time

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harmonia.server.services.telemetry import Metrics

UNMATCHED = "unmatched"


class Telemetry:
    """Reports route, status and duration of each request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, prefixes: tuple[str, ...]) -> None:
        self._app = app
        self._prefixes = prefixes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through and count it at its end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            state, seconds = scope.get("state", {}), time.perf_counter() - started
            operation = state.get("graphql_operation", "")
            self._metrics.observe_request(self._route(scope), status, seconds, state.get("model"), operation)

    def _route(self, scope: Scope) -> str:
        """The template that matched, not the path: a label for each path would never end."""
        route = scope.get("route")
        if not isinstance(route, BaseRoute):
            return UNMATCHED
        template = str(getattr(route, "path", ""))
        prefix = next((prefix for prefix in self._prefixes if scope["path"].startswith(f"{prefix}/")), "")
        # Some versions of FastAPI leave the prefix of an included router out of its routes.
        return template if template.startswith(prefix) else prefix + template
