"""Measures every HTTP request. Plain ASGI: a middleware that wraps responses would cost time per token."""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harmonia import tracing
from harmonia.log import REQUEST_ID
from harmonia.server.rest.request_id import QUIET
from harmonia.server.services.telemetry import Metrics

UNMATCHED = "unmatched"


class Telemetry:
    """Reports route, status and duration of each request, and begins its trace, or continues its caller's."""

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

        traced = tracing.is_on() and scope["path"] not in QUIET
        with tracing.incoming(scope["method"], scope["headers"]) if traced else tracing.SILENT as span:
            try:
                await self._app(scope, receive, observe)
            finally:
                state, seconds = scope.get("state", {}), time.perf_counter() - started
                route, operation = self._route(scope), state.get("graphql_operation", "")
                self._metrics.observe_request(route, status, seconds, operation)
                if "model" in state:
                    self._metrics.observe_generation(state["model"], state.get("pool", ""), seconds)
                if traced:
                    _tell(span, f"{scope['method']} {route}", status, state)

    def _route(self, scope: Scope) -> str:
        """The template that matched, not the path: a label for each path would never end."""
        route = scope.get("route")
        if not isinstance(route, BaseRoute):
            return UNMATCHED
        template = str(getattr(route, "path", ""))
        prefix = next((prefix for prefix in self._prefixes if scope["path"].startswith(f"{prefix}/")), "")
        # Some versions of FastAPI leave the prefix of an included router out of its routes.
        return template if template.startswith(prefix) else prefix + template


def _tell(span: tracing.Span, name: str, status: int, state: Mapping[str, str]) -> None:
    """What is known at the end. No address and no header: they may hold secrets, and the route tells enough."""
    method, _, route = name.partition(" ")
    told: dict[str, str | int] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "harmonia.request_id": REQUEST_ID.get(),
    }
    named = {"gen_ai.request.model": state.get("model"), "graphql.operation.name": state.get("graphql_operation")}
    span.rename(name)
    span.note({**told, **{key: value for key, value in named.items() if value}})
    if status >= 500:
        span.fail(f"HTTP {status}")
