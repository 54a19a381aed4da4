"""Errors in OpenAI's shape: which status, type and code each exception gets."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import IntegrityError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from harmonia.errors import (
    AdapterLimitError,
    AuthenticationError,
    DeadlineExceededError,
    EntityNotFoundError,
    HarmoniaError,
    InsufficientMemoryError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    SequenceTooLongError,
    UnavailableError,
    UnknownModelError,
    WorkerLostError,
)
from harmonia.log import get_logger
from harmonia.server.db.database import CONFLICT
from harmonia.server.rest.schemas.fields import ErrorBody, ErrorResponse

log = get_logger(__name__)

CLIENT_CLOSED_REQUEST = 499
DEFAULT_RETRY_AFTER_S = 1


class BodyTooLargeError(InvalidRequestError):
    """The request body exceeds the server's limit."""

    code = "body_too_large"


class MediaTypeError(InvalidRequestError):
    """The request body is not declared as JSON."""

    code = "unsupported_media_type"


class RateLimitError(OverloadedError):
    """The caller asks too often."""

    code = "rate_limit_exceeded"


class Kind(NamedTuple):
    """How one class of exceptions looks on the wire."""

    status: int
    type: str
    code: str


_KINDS: dict[type[Exception], Kind] = {
    BodyTooLargeError: Kind(413, "invalid_request_error", "body_too_large"),
    MediaTypeError: Kind(415, "invalid_request_error", "unsupported_media_type"),
    SequenceTooLongError: Kind(400, "invalid_request_error", "context_length_exceeded"),
    EntityNotFoundError: Kind(404, "invalid_request_error", "not_found"),
    UnknownModelError: Kind(404, "invalid_request_error", "model_not_found"),
    AdapterLimitError: Kind(409, "invalid_request_error", "adapter_limit"),
    InvalidRequestError: Kind(400, "invalid_request_error", "invalid_request"),
    AuthenticationError: Kind(401, "authentication_error", "invalid_api_key"),
    PermissionDeniedError: Kind(403, "permission_error", "permission_denied"),
    DeadlineExceededError: Kind(408, "timeout_error", "timeout"),
    RateLimitError: Kind(429, "rate_limit_error", "rate_limit_exceeded"),
    OverloadedError: Kind(429, "rate_limit_error", "queue_full"),
    UnavailableError: Kind(503, "service_unavailable", "unavailable"),
    WorkerLostError: Kind(503, "service_unavailable", "worker_lost"),
    InsufficientMemoryError: Kind(507, "server_error", "insufficient_memory"),
    HarmoniaError: Kind(500, "server_error", "internal"),
}

_REMEDIES = {
    "max_ttft_ms": "raise max_ttft_ms in the request, or --max-ttft-ms (ADAPTIVE_MAX_TTFT_MS) for every request",
    "ADAPTIVE_SERVER__TIMEOUT_SECONDS": "stream the answer, or raise ADAPTIVE_SERVER__TIMEOUT_SECONDS",
    "ADAPTIVE_HTTP_CLIENT__TIMEOUT_SECS": "raise ADAPTIVE_HTTP_CLIENT__TIMEOUT_SECS",
}


def kind_of(error: HarmoniaError) -> Kind:
    """Status, type and code of an exception."""
    for cls in type(error).__mro__:
        if cls in _KINDS:
            return _KINDS[cls]
    return _KINDS[HarmoniaError]


def body_of(error: HarmoniaError) -> bytes:
    """`{"error": ...}` as JSON."""
    kind = kind_of(error)
    limit = error.details.get("limit")
    param = error.details.get("field") or (limit if limit == "max_ttft_ms" else None)
    message = error.message
    remedy = _REMEDIES.get(str(limit))
    if remedy is not None and not _names_remedy(message, str(limit)):
        message = f"{message} ({limit} fired: {remedy})"
    return encode_error(message, kind, None if param is None else str(param))


def _names_remedy(message: str, limit: str) -> bool:
    return limit in message and "raise" in message


def encode_error(message: str, kind: Kind, param: str | None = None) -> bytes:
    """An error body as JSON."""
    body = ErrorBody(message=message, type=kind.type, param=param, code=kind.code)
    return msgspec.json.encode(ErrorResponse(error=body))


def response_to(error: HarmoniaError) -> Response:
    """The HTTP response that reports an exception."""
    kind = kind_of(error)
    headers: dict[str, str] = {}
    if kind.status in (429, 503):
        headers["retry-after"] = str(_whole_seconds(error.details.get("retry_after_s")))
    elif kind.status == 401:
        headers["www-authenticate"] = "Bearer"
    elif kind.status == 408:
        # OpenAI's clients repeat a 408 at once, which only lengthens the queue that made it late.
        headers["x-should-retry"] = "false"
    if kind.status >= 500:
        log.error("%s: %s", type(error).__name__, error.message)
    return Response(body_of(error), kind.status, headers, media_type="application/json")


def _whole_seconds(value: object) -> int:
    return max(1, round(value)) if isinstance(value, int | float) else DEFAULT_RETRY_AFTER_S


def install_handlers(app: FastAPI) -> None:
    """Make the application answer every exception in OpenAI's shape."""
    app.add_exception_handler(HarmoniaError, _on_harmonia_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(IntegrityError, _on_conflict)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_bug)


async def _on_harmonia_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HarmoniaError)
    return response_to(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = Kind(error.status_code, "invalid_request_error", "not_found" if error.status_code == 404 else "http_error")
    message = f"{error.detail}: {request.method} {request.url.path}"
    return Response(encode_error(message, kind), kind.status, error.headers, media_type="application/json")


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    return Response(encode_error(first["msg"], _KINDS[InvalidRequestError], param), 400, media_type="application/json")


async def _on_conflict(_: Request, __: Exception) -> Response:
    kind = Kind(409, "invalid_request_error", "conflict")
    return Response(encode_error(CONFLICT, kind), kind.status, media_type="application/json")


async def _on_disconnect(_: Request, __: Exception) -> Response:
    # Nobody reads this; the status is for the metrics.
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _on_bug(_: Request, error: Exception) -> Response:
    message = "the server met an error of its own; its log has the trace"
    return Response(encode_error(message, _KINDS[HarmoniaError]), 500, media_type="application/json")
