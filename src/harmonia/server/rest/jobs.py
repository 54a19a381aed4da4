"""Files of jobs: their logs, and what they made."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from harmonia.errors import EntityNotFoundError
from harmonia.server.rest.callers import KnownCaller, Server
from harmonia.server.rest.downloads import download_headers

router = APIRouter(tags=["jobs"])
_BLOCK_BYTES = 64 << 10


@router.get("/jobs/{job_id}/logs", response_class=Response)
async def download_log(job_id: uuid.UUID, caller: KnownCaller, services: Server) -> Response:
    """What a job and its worker wrote so far."""
    file = await services.jobs.log_file(caller, job_id)
    headers = download_headers(f"{job_id}.log")
    return StreamingResponse(_blocks(file), media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/artifacts/{artifact_id}/download", response_class=Response)
async def download_artifact(artifact_id: uuid.UUID, caller: KnownCaller, services: Server) -> Response:
    """The content of what a job made."""
    artifact = await services.jobs.artifact(caller, artifact_id)
    if artifact is None or artifact.file is None:
        what = "does not exist" if artifact is None else "has no content of its own"
        raise EntityNotFoundError(f"Artifact {artifact_id} {what}", entity="artifact")
    headers = download_headers(str(artifact_id))
    return StreamingResponse(services.files.get(artifact.file), media_type="application/octet-stream", headers=headers)


async def _blocks(file: Path) -> AsyncIterator[bytes]:
    """What is in a file, which may grow meanwhile; nothing if there is none."""
    if not file.exists():
        return
    with file.open("rb") as opened:
        while block := await asyncio.to_thread(opened.read, _BLOCK_BYTES):
            yield block
