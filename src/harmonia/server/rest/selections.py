"""Downloads of completions that somebody picked."""

from __future__ import annotations

import base64
import binascii
import uuid
from typing import Literal

import msgspec
from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from harmonia.errors import InvalidRequestError
from harmonia.server.rest.callers import KnownCaller, Server
from harmonia.server.rest.downloads import download_headers
from harmonia.server.services.interactions.selection import Selection

router = APIRouter(prefix="/projects/{project}/interactions", tags=["interactions"])

MAX_ADDRESS = 16 * 1024
"""Characters of a selection in an address: servers and proxies refuse longer lines."""


def download_address(project_id: uuid.UUID, selection: Selection, form: str) -> str:
    """Where a selection can be downloaded, by everybody who may read it. form: `completions` or `dataset`."""
    text = base64.urlsafe_b64encode(msgspec.json.encode(selection)).decode()
    if len(text) > MAX_ADDRESS:
        raise InvalidRequestError(
            "the selection is too long for the address of a download; name fewer completions, or use filters",
            field="selection",
        )
    return f"/api/v1/projects/{project_id}/interactions/download?format={form}&selection={text}"


@router.get("/download")
async def download_completions(
    project: str,
    selection: str,
    services: Server,
    caller: KnownCaller,
    format: Literal["completions", "dataset"] = "completions",
) -> StreamingResponse:
    """One JSON object a line: `completions` with all that is known, `dataset` as rows of a data set."""
    wanted = _selection(selection)
    if format == "dataset":
        lines = await services.filtered_datasets.download(caller, project, wanted)
    else:
        lines = await services.selections.lines(caller, project, wanted)
    headers = download_headers(f"{format}.jsonl")
    return StreamingResponse(lines, headers=headers, media_type="application/x-ndjson")


def _selection(text: str) -> Selection:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text), type=Selection)
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError) as error:
        raise InvalidRequestError(
            "this is no selection; ask completionDownloadUrl for an address", field="selection"
        ) from error
