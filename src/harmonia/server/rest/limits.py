"""What one caller may ask of the server: bytes in a body, and requests in a second."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harmonia.server.rest.errors import BodyTooLargeError, RateLimitError, response_to

BURST_S = 2.0
"""Seconds of the average that may come at once."""
_MAX_BUCKETS = 10_000
_MAX_DIGITS = 18
_UPLOADS = ("multipart/form-data", "application/octet-stream")


class BodyLimit:
    """Answers 413 to a body that is too large, declared or not, before more of it is read."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_upload_bytes: int) -> None:
        """max_bytes: of any body. max_upload_bytes: of forms and raw bytes instead, which carry files."""
        self._app = app
        self._max_bytes = max_bytes
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through, and what it answers unless its body was too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit, error = self._limit(headers)
        declared = headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and (len(declared) > _MAX_DIGITS or int(declared) > limit):
            await response_to(error)(scope, receive, send)
            return
        size, is_answered = 0, False

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise error
            return message

        async def answer(message: Message) -> None:
            # Whoever read the body may have taken the error for one of its own.
            nonlocal is_answered
            if size > limit and not is_answered:
                return
            is_answered = True
            await send(message)

        try:
            await self._app(scope, bounded, answer)
        except BodyTooLargeError:
            if is_answered:
                raise
        if size > limit and not is_answered:
            await response_to(error)(scope, receive, send)

    def _limit(self, headers: Headers) -> tuple[int, BodyTooLargeError]:
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        limit, name = self._max_bytes, "MAX_BODY_BYTES"
        if media_type in _UPLOADS:
            limit, name = self._max_upload_bytes, "MAX_UPLOAD_BYTES"
        return limit, BodyTooLargeError(f"the body exceeds {limit} bytes; ADAPTIVE_SERVER__{name} sets the limit")


class RateLimit:
    """Answers 429 to an API key, or the cookie of a log-in, that asks too often; the time after which it may go on is
    in `retry-after`.

    Each has a bucket of tokens that fills with time. They are known by their digests, and those that were not seen for
    longest are forgotten.
    """

    def __init__(self, app: ASGIApp, per_second: float, cookie: str) -> None:
        """cookie: the name of that of a log-in, by which requests without a key are known."""
        self._app = app
        self._cookie = cookie
        self._per_second = per_second
        self._size = max(1.0, BURST_S * per_second)
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through, or refuse it."""
        secret = self._secret(HTTPConnection(scope)) if scope["type"] == "http" else None
        wait_s = 0.0 if secret is None else self._take(secret)
        if wait_s == 0.0:
            await self._app(scope, receive, send)
            return
        error = RateLimitError(
            f"this API key or log-in may send {self._per_second:g} requests a second, and sent more; go on in "
            f"{wait_s:.1f} s, or ask who runs the server to raise ADAPTIVE_SERVER__REQUESTS_PER_SECOND",
            retry_after_s=wait_s,
        )
        await response_to(error)(scope, receive, send)

    def _secret(self, request: HTTPConnection) -> str | None:
        """What the request would prove its sender by; a key counts for more than a cookie, as it does for access."""
        return request.headers.get("authorization") or request.cookies.get(self._cookie) or None

    def _take(self, secret: str) -> float:
        """Take a token; else the seconds until there is one."""
        digest, now = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest(), time.monotonic()
        tokens, since = self._buckets.pop(digest, (self._size, now))
        tokens = min(self._size, tokens + (now - since) * self._per_second)
        has_token = tokens >= 1.0
        self._buckets[digest] = (tokens - 1.0 if has_token else tokens, now)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return 0.0 if has_token else (1.0 - tokens) / self._per_second
