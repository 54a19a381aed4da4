"""Uploads in parts: begun, filled in any order, looked at, dropped."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from harmonia.server.rest.body import read_body
from harmonia.server.rest.callers import KnownCaller, Server
from harmonia.server.rest.errors import BodyTooLargeError
from harmonia.server.services.datasets.uploads import NewUpload, PartTooLargeError

router = APIRouter(prefix="/upload", tags=["uploads"])

_MAX_BODY_BYTES = 1 << 20


class InitUpload(msgspec.Struct, forbid_unknown_fields=True):
    """What a client says of a file before its parts come."""

    total_parts_count: int
    content_type: str | None = None
    metadata: dict[str, Any] | None = None


class NamedSession(msgspec.Struct, forbid_unknown_fields=True):
    """An upload by its id."""

    session_id: str


class Part(msgspec.Struct):
    """A part that was taken."""

    part_number: int
    size: int


class Completed(msgspec.Struct):
    """The parts that are there, and how many there will be."""

    completed_parts: list[int]
    total_parts_count: int


@router.post("/init")
async def init_upload(request: Request, services: Server, caller: KnownCaller) -> Response:
    """Begin an upload of 1 to 10,000 parts of up to 100 MiB."""
    body = await read_body(request, InitUpload, _MAX_BODY_BYTES)
    new = NewUpload(body.total_parts_count, body.content_type, body.metadata or {})
    row = await services.uploads.begin(caller, new)
    return _json(NamedSession(str(row.id)))


@router.post("/part")
async def upload_part(
    request: Request, services: Server, caller: KnownCaller, session_id: str, part_number: int
) -> Response:
    """One part, raw. Parts count from 1 and come in any order; the same one again replaces what came before."""
    try:
        size = await services.uploads.put_part(caller, session_id, part_number, request.stream())
    except PartTooLargeError as error:
        raise BodyTooLargeError(error.message, field="body") from error
    return _json(Part(part_number, size))


@router.post("/status")
async def upload_status(request: Request, services: Server, caller: KnownCaller) -> Response:
    """Which parts are there."""
    body = await read_body(request, NamedSession, _MAX_BODY_BYTES)
    status = await services.uploads.status(caller, body.session_id)
    return _json(Completed(status.completed, status.total))


@router.delete("/abort")
async def abort_upload(request: Request, services: Server, caller: KnownCaller) -> Response:
    """Drop an upload and its parts."""
    body = await read_body(request, NamedSession, _MAX_BODY_BYTES)
    await services.uploads.abort(caller, body.session_id)
    return Response(status_code=204)


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
