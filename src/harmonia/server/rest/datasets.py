"""Downloads of data sets."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from harmonia.server.rest.callers import KnownCaller, Server
from harmonia.server.rest.downloads import download_headers

router = APIRouter(prefix="/projects/{project}/datasets/{dataset}", tags=["datasets"])


@router.get("/download")
async def download_dataset(
    project: str, dataset: str, services: Server, caller: KnownCaller, format: str = "original"
) -> StreamingResponse:
    """The rows, one JSON object a line: `original` as they were uploaded, `recipe` as recipes read them."""
    found = await services.datasets.download(caller, project, dataset, format)
    headers = download_headers(found.file_name, found.size)
    return StreamingResponse(found.blocks, headers=headers, media_type="application/x-ndjson")
