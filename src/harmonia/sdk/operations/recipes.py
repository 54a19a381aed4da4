"""Recipes."""

from __future__ import annotations

from typing import Annotated, Any

from harmonia.sdk.operations.base import Result, chosen, mutation, optional, query


class Label(Result, frozen=True):
    """A word about something."""

    key: str
    value: str


class Author(Result, frozen=True):
    """A user, in short."""

    id: str
    name: str
    email: str


class Recipe(Result, frozen=True):
    """Code that jobs run; `json_schema` describes the arguments it takes."""

    id: str
    key: str | None
    name: str
    description: str
    content_hash: str
    editable: bool
    is_global: Annotated[bool, chosen(field="global")]
    builtin: bool
    json_schema: dict[str, Any]
    labels: list[Label]
    created_at: int
    updated_at: int | None
    created_by: Author | None


class RecipeName(Result, frozen=True):
    """A recipe, in short."""

    id: str
    key: str | None
    name: str


RECIPES = query("customRecipes", list[Recipe], project="IdOrKey!", filter="CustomRecipeFilterInput!")
RECIPE = optional("customRecipe", Recipe, idOrKey="IdOrKey!", project="IdOrKey!")
CREATE_RECIPE = mutation("createCustomRecipe", Recipe, project="IdOrKey!", input="CreateRecipeInput!", file="Upload!")
UPDATE_RECIPE = mutation(
    "updateCustomRecipe", Recipe, project="IdOrKey!", id="IdOrKey!", input="UpdateRecipeInput!", file="Upload"
)
PATCH_RECIPE = mutation(
    "patchCustomRecipe", Recipe, project="IdOrKey!", id="IdOrKey!", input="PatchRecipeInput!", files="[Upload!]!"
)
DUPLICATE_RECIPE = mutation(
    "duplicateCustomRecipe", Recipe, project="IdOrKey!", id="IdOrKey!", input="DuplicateRecipeInput!"
)
PARSE_SCHEMA = query("parseRecipeSchema", dict[str, Any], recipeContent="String!")
DELETE_RECIPE = mutation("deleteCustomRecipe", bool, project="IdOrKey!", id="IdOrKey!")
