"""The code of recipes."""

from __future__ import annotations

from fastapi import APIRouter, Response

from harmonia.server.rest.callers import KnownCaller, Server
from harmonia.server.rest.downloads import download_headers

router = APIRouter(tags=["recipes"])


@router.get("/projects/{project}/recipes/{recipe:path}/download", response_class=Response)
async def download_recipe(project: str, recipe: str, caller: KnownCaller, services: Server) -> Response:
    """The zip of a recipe. With the key of a job: the version that the job was made with."""
    archive = await services.recipes.archive(caller, project, recipe)
    return Response(archive, media_type="application/zip", headers=download_headers(f"{recipe}.zip"))
