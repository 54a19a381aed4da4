"""The code of recipes."""

from __future__ import annotations

from fastapi import APIRouter, Response

from harmonia.server.rest.known_caller import KnownCaller, Server

router = APIRouter(tags=["recipes"])


@router.get("/projects/{project}/recipes/{recipe:path}/download", response_class=Response)
async def download_recipe(project: str, recipe: str, caller: KnownCaller, services: Server) -> Response:
    """The zip of a recipe. With the key of a job: the version that the job was made with."""
    archive = await services.recipes.archive(caller, project, recipe)
    name = recipe.replace("/", "-").encode("ascii", "ignore").decode().replace('"', "")
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return Response(archive, media_type="application/zip", headers=headers)
