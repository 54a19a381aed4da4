"""A name for every request: in its answer, and in each line that the log gets meanwhile."""

from __future__ import annotations

import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harmonia.log import REQUEST_ID, get_logger

HEADER = "x-request-id"
QUIET = frozenset({"/health", "/health/live", "/metrics"})
"""Asked all the time; their lines are for debugging."""

log = get_logger(__name__)

_GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestIds:
    """Takes the caller's `x-request-id`, or makes one, and logs each request when it ends.

    The line holds method, path, status and milliseconds. It holds neither headers nor what follows a `?`, where keys
    and codes of log-ins are.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _GIVEN.fullmatch(given) else uuid.uuid4().hex
        token, started, status = REQUEST_ID.set(request_id), time.perf_counter(), 500

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            line = log.debug if scope["path"] in QUIET else log.info
            milliseconds = 1000.0 * (time.perf_counter() - started)
            # Quoted, so that a path cannot look like a line of its own.
            line("%s %s %d in %.1f ms", scope["method"], quote(scope["path"]), status, milliseconds)
            REQUEST_ID.reset(token)
