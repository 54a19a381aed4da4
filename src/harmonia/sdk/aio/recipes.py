"""Recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from harmonia.sdk.aio.resource import AsyncResource
from harmonia.sdk.files import FilePart, default_recipe_key, existing_file, pack_recipe, slug
from harmonia.sdk.inputs import RecipeDetails, checked, label_pairs
from harmonia.sdk.operations import recipes
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.recipes import Recipe


class AsyncRecipes(AsyncResource):
    """`adaptive.recipes`: code that jobs run, by key or id."""

    async def upload(
        self,
        path: str | Path,
        recipe_key: str | None = None,
        project: str | None = None,
        **details: Unpack[RecipeDetails],
    ) -> Recipe:
        """A new recipe from a .py file, or from a folder with `main.py`.

        Its key is made of its name, else of the name of the file or folder. What `.zipignore`, else `.gitignore`, of a
        folder names stays here.
        """
        body = _body(details)
        body["key"] = recipe_key or _default_key(path, details)
        body.setdefault("name", body["key"])
        file = pack_recipe(path, details.get("entrypoint"))
        return await self._transport.execute(recipes.CREATE_RECIPE, file, project=self._project(project), input=body)

    async def update(
        self,
        recipe_key: str,
        path: str | Path | None = None,
        project: str | None = None,
        **details: Unpack[RecipeDetails],
    ) -> Recipe:
        """Change a recipe; what is not given, the code included, stays as it is."""
        file: FilePart | None = None if path is None else pack_recipe(path, details.get("entrypoint"))
        chosen, body = self._project(project), _body(details)
        return await self._transport.execute(recipes.UPDATE_RECIPE, file, project=chosen, id=recipe_key, input=body)

    async def upsert(
        self,
        path: str | Path,
        recipe_key: str | None = None,
        project: str | None = None,
        **details: Unpack[RecipeDetails],
    ) -> Recipe:
        """`update` if there is a recipe of that key, else `upload`."""
        key = recipe_key or _default_key(path, details)
        if await self.get(key, project) is None:
            return await self.upload(path, key, project, **details)
        return await self.update(key, path, project, **details)

    async def patch(
        self,
        recipe_key: str,
        files: Mapping[str, str | Path] | None = None,
        delete: Sequence[str] = (),
        project: str | None = None,
    ) -> Recipe:
        """Change single files of a recipe. files: files of this machine, by the paths that they have, or get, in the
        recipe; delete: paths of those that shall be gone."""
        parts = [
            FilePart(path, existing_file(file).read_bytes(), "application/octet-stream")
            for path, file in (files or {}).items()
        ]
        body, chosen = {"filesToDelete": list(delete)}, self._project(project)
        return await self._transport.execute(recipes.PATCH_RECIPE, parts, project=chosen, id=recipe_key, input=body)

    async def duplicate(
        self,
        recipe_key: str,
        name: str | None = None,
        key: str | None = None,
        description: str | None = None,
        project: str | None = None,
    ) -> Recipe:
        """A copy that can be changed, of a built-in recipe too; its key is made of its name."""
        body, chosen = given(name=name, key=key, description=description), self._project(project)
        return await self._transport.execute(recipes.DUPLICATE_RECIPE, project=chosen, id=recipe_key, input=body)

    async def parse_schema(self, path: str | Path) -> dict[str, Any]:
        """The JSON schema of the arguments that a recipe of one file takes, without keeping it."""
        content = existing_file(path).read_text(encoding="utf-8")
        return await self._transport.execute(recipes.PARSE_SCHEMA, recipeContent=content)

    async def list(
        self, project: str | None = None, labels: Mapping[str, Sequence[str]] | None = None
    ) -> Sequence[Recipe]:
        """Those that a project may run. labels: only those that have these, with one of these values."""
        wanted = [{"key": key, "value": list(values)} for key, values in (labels or {}).items()]
        filter = {"labels": wanted} if wanted else {}
        return await self._transport.execute(recipes.RECIPES, project=self._project(project), filter=filter)

    async def get(self, recipe_key: str, project: str | None = None) -> Recipe | None:
        """One of them."""
        return await self._transport.execute(recipes.RECIPE, idOrKey=recipe_key, project=self._project(project))

    async def delete(self, recipe_key: str, project: str | None = None) -> bool:
        """Remove a recipe; jobs that ran it stay."""
        chosen = self._project(project)
        return await self._transport.execute(recipes.DELETE_RECIPE, project=chosen, id=recipe_key)


def _default_key(path: str | Path, details: RecipeDetails) -> str:
    name = details.get("name")
    return slug(name) if name else default_recipe_key(path)


def _body(details: RecipeDetails) -> dict[str, Any]:
    body = checked(details, RecipeDetails, "the recipe")
    if "labels" in body:
        body["labels"] = label_pairs(body["labels"])
    return body
