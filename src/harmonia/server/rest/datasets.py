"""Downloads of data sets."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from harmonia.server.rest.known_caller import KnownCaller, Server

router = APIRouter(prefix="/projects/{project}/datasets/{dataset}", tags=["datasets"])


@router.get("/download")
async def download_dataset(
    project: str, dataset: str, services: Server, caller: KnownCaller, format: str = "original"
) -> StreamingResponse:
    """The rows, one JSON object a line: `original` as they were uploaded, `recipe` as recipes read them."""
    found = await services.datasets.download(caller, project, dataset, format)
    headers = {
        "content-length": str(found.size),
        "content-disposition": f"attachment; filename*=utf-8''{quote(found.file_name)}",
        "x-content-type-options": "nosniff",
    }
    return StreamingResponse(found.blocks, headers=headers, media_type="application/x-ndjson")
