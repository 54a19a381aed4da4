"""What answers mean: errors as the exceptions of `harmonia.errors`, and whether asking again may help."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

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
    from_code,
)

NOT_FOUND = "EntityNotFound: "
LONGEST_PAUSE_S = 30.0
"""A server that asks for more patience is not asked again."""
_FIRST_PAUSE_S = 0.25
_PASSING = frozenset({429, 502, 503, 504})
_POLITE = frozenset({429, 503})
_QUOTED = 500

_REPORTS_ERROR = re.compile(rb'\s*\{\s*"error"\s*:')

_BY_STATUS: dict[int, type[HarmoniaError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: EntityNotFoundError,
    408: DeadlineExceededError,
    429: OverloadedError,
    502: UnavailableError,
    503: UnavailableError,
    504: DeadlineExceededError,
    507: InsufficientMemoryError,
}
_BY_CODE: dict[str, type[HarmoniaError]] = {
    "context_length_exceeded": SequenceTooLongError,
    "model_not_found": UnknownModelError,
    "adapter_limit": AdapterLimitError,
    "worker_lost": WorkerLostError,
    "queue_full": OverloadedError,
    "timeout": DeadlineExceededError,
    "invalid_request": InvalidRequestError,
}


class _Extensions(msgspec.Struct):
    code: str = ""


class _Problem(msgspec.Struct):
    message: str
    extensions: _Extensions | None = None


class _Envelope(msgspec.Struct):
    data: dict[str, msgspec.Raw] | None = None
    errors: list[_Problem] | None = None


def read_graphql(body: bytes, field: str) -> bytes:
    """The value of a root field, not decoded yet; raises what the server reports."""
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
    except msgspec.DecodeError as error:
        raise _nonsense(body) from error
    if envelope.errors:
        raise _problem(envelope.errors)
    if envelope.data is None or field not in envelope.data:
        raise _nonsense(body)
    return bytes(envelope.data[field])


def _problem(problems: list[_Problem]) -> HarmoniaError:
    message = "; ".join(problem.message for problem in problems)
    code = problems[0].extensions.code if problems[0].extensions is not None else ""
    if message.startswith(NOT_FOUND):
        return EntityNotFoundError(message.removeprefix(NOT_FOUND))
    return from_code(code, message) if code else InvalidRequestError(message)


def read_json(body: bytes, kind: type[Any]) -> Any:
    """A body as a type; HarmoniaError if it is none, which a server of another version may send."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise HarmoniaError(f"the server's answer is not as expected ({error}): {_quoted(body)}") from error


def error_of(response: httpx.Response) -> HarmoniaError:
    """The exception for an answer whose status is no success; its body must have been read."""
    message, code, field = _told(response.content)
    status = response.status_code
    cls = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if cls is None:
        cls = InvalidRequestError if 400 <= status < 500 else HarmoniaError
    details: dict[str, object] = {"status": status}
    if field:
        details["field"] = field
    if (pause := _retry_after(response.headers)) is not None:
        details["retry_after_s"] = pause
    if 300 <= status < 400:
        message = f"the server sends its callers to {response.headers.get('location')!r}; give that as base_url"
    return cls(message or f"the server answered {status} without a word", **details)


def error_in_stream(data: bytes) -> HarmoniaError | None:
    """The exception that an event of a stream reports, if it does."""
    if not _REPORTS_ERROR.match(data):
        return None
    message, code, _ = _told(data)
    return _BY_CODE.get(code, HarmoniaError)(message)


def _told(body: bytes) -> tuple[str, str, str]:
    """The message, the code and the offending parameter in an error's body."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return _quoted(body), "", ""
    error = value
    for name in ("error", "detail", "errors"):
        if isinstance(value, dict) and name in value:
            error = value[name]
            break
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, Mapping):
        return str(error.get("message") or error), str(error.get("code") or ""), str(error.get("param") or "")
    return str(error), "", ""


def unreachable(error: httpx.TransportError, address: str, timeout_s: float | None) -> HarmoniaError:
    """The exception for a request that got no answer."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return UnavailableError(
            f"no server listens at {address} ({error}); start one, or give its address in ADAPTIVE_BASE_URL"
        )
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceededError(
            f"{address} did not answer within {timeout_s} s; give more with with_options(timeout_s=...)",
            limit="timeout_s",
        )
    return UnavailableError(f"the connection to {address} broke: {error or type(error).__name__}")


def pause_before_retry(attempt: int, repeatable: bool, response: httpx.Response | None) -> float | None:
    """Seconds until the request may be sent again, None if it may not.

    attempt: how often it was sent before, from 0. response: None if the connection failed. What changes something is
    sent again only where the server asks for that: it then has not begun.
    """
    asked = None if response is None else _retry_after(response.headers)
    if response is not None and response.status_code in _POLITE and asked is not None:
        return asked if asked <= LONGEST_PAUSE_S else None
    if not repeatable or (response is not None and response.status_code not in _PASSING):
        return None
    longest: float = min(_FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
    return longest * random.uniform(0.5, 1.0)


def _retry_after(headers: httpx.Headers) -> float | None:
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _nonsense(body: bytes) -> HarmoniaError:
    return HarmoniaError(f"this is no answer of a Harmonia server; is the address right? {_quoted(body)}")


def _quoted(body: bytes) -> str:
    return body[:_QUOTED].decode("utf-8", "replace").strip()
