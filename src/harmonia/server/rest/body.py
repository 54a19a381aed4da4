"""Reads a JSON body strictly: bounded in bytes and depth, typed, and refusing fields that it does not know."""

from __future__ import annotations

import difflib
import re
from typing import TypeVar

import msgspec
from fastapi import Request

from harmonia.errors import InvalidRequestError
from harmonia.server.rest.errors import BodyTooLargeError, MediaTypeError

MAX_DEPTH = 64
"""Nesting beyond this is no request that a person wrote, and would exhaust the stack of what comes after."""

T = TypeVar("T", bound=msgspec.Struct)

_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"unknown field `(.*?)`(?: - at `\$\.?(.*)`)?$", re.DOTALL)
_PATH = re.compile(r"^(.*?) - at `(?:key in )?\$\.?(.*)`$", re.DOTALL)
_MISSING_FIELD = re.compile(r"missing required field `(.*?)`")


async def read_body(request: Request, model: type[T], max_bytes: int) -> T:
    """The request's body as `model`, or an error that names the field at fault."""
    _check_media_type(request)
    raw = await _read_bytes(request, max_bytes)
    if not raw:
        raise InvalidRequestError("the request has no body; send JSON")
    _check_depth(raw)
    try:
        return msgspec.json.decode(raw, type=model)
    except msgspec.ValidationError as error:
        raise _explain(str(error), model) from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not UTF-8: {error.reason} at byte {error.start} of a string") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not JSON: {error}") from error


def _check_media_type(request: Request) -> None:
    """Any web page can make a browser send text or forms to this server; for JSON a browser asks first."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        got = repr(media_type) if media_type else "nothing"
        raise MediaTypeError(f"send the header 'Content-Type: application/json', got {got}", field="content-type")


async def _read_bytes(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and len(declared) < 20 and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body exceeds {max_bytes} bytes; ADAPTIVE_SERVER__MAX_BODY_BYTES sets the limit")


def _check_depth(raw: bytes) -> None:
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(raw):
        mark = match.group()
        if mark in (b"[", b"{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidRequestError(f"the body is nested deeper than {MAX_DEPTH} levels")
        elif mark in (b"]", b"}"):
            depth -= 1


def _explain(message: str, model: type[msgspec.Struct]) -> InvalidRequestError:
    unknown = _UNKNOWN_FIELD.search(message)
    if unknown is not None:
        return _unknown_field(unknown.group(1), unknown.group(2) or "", model)
    missing = _MISSING_FIELD.search(message)
    located = _PATH.match(message)
    text, path = (located.group(1), located.group(2)) if located else (message, "")
    if missing is not None:
        path = f"{path}.{missing.group(1)}" if path else missing.group(1)
    prefix = f"{path}: " if path else ""
    return InvalidRequestError(f"{prefix}{text[:1].lower()}{text[1:]}", field=path or None)


def _unknown_field(name: str, path: str, model: type[msgspec.Struct]) -> InvalidRequestError:
    where = f"{path}.{name}" if path else name
    message = f"{where}: unknown field"
    if not path:
        close = difflib.get_close_matches(name, model.__struct_fields__, n=1)
        message += f"; did you mean {close[0]!r}?" if close else ""
    return InvalidRequestError(message, field=where)
