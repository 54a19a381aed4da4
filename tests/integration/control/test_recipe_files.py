"""Recipes changed file by file, copied, and tried without being kept, through `harmonia.sdk`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.sdk import Adaptive
from tests.integration.control.conftest import Plane, on_both

MAIN = """
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from .words import WORD

class Config(InputConfig):
    word: str = WORD

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    pass
"""


@pytest.fixture
def sdk(plane: Plane) -> Iterator[Adaptive]:
    with Adaptive(plane.url, plane.api_key, "lab") as client:
        client.projects.create("lab")
        yield client


@pytest.fixture
def recipe(sdk: Adaptive, tmp_path: Path) -> Path:
    """A folder that was uploaded as `lesson`."""
    folder = tmp_path / "lesson"
    folder.mkdir()
    (folder / "main.py").write_text(MAIN)
    (folder / "words.py").write_text('WORD = "blue"\n')
    (folder / "notes.txt").write_text("none\n")
    sdk.recipes.upload(folder, labels={"team": "red"})
    return folder


def files_of(plane: Plane, key: str) -> list[str]:
    query = 'query ($key: IdOrKey!) { customRecipe(idOrKey: $key, project: "lab") { contentFiles } }'
    headers = {"Authorization": f"Bearer {plane.api_key}"}
    body = {"query": query, "variables": {"key": key}}
    answer = httpx.post(f"{plane.url}/api/graphql", json=body, headers=headers, timeout=60)
    found: list[str] = answer.json()["data"]["customRecipe"]["contentFiles"]
    return found


@on_both
def test_single_files_are_replaced_added_and_removed(plane: Plane, sdk: Adaptive, recipe: Path) -> None:
    before = sdk.recipes.get("lesson")
    assert before is not None and before.json_schema["properties"]["word"]["default"] == "blue"
    (recipe / "words.py").write_text('WORD = "green"\n')
    wanted = {"words.py": recipe / "words.py", "data/more.txt": recipe / "notes.txt"}
    changed = sdk.recipes.patch("lesson", wanted, delete=["notes.txt"])
    assert changed.json_schema["properties"]["word"]["default"] == "green"
    assert (changed.id, changed.labels) == (before.id, before.labels) and changed.updated_at is not None
    assert files_of(plane, "lesson") == ["data/more.txt", "main.py", "words.py"]


def test_what_cannot_be_patched_is_refused(plane: Plane, sdk: Adaptive, recipe: Path) -> None:
    file = recipe / "notes.txt"
    for files, gone, why in (
        ({}, [], "give files to add"),
        ({}, ["more.txt"], "no file 'more.txt' to delete; there is main.py, notes.txt, words.py"),
        ({}, ["words.py"], "words"),  # the recipe cannot be imported without it
        ({}, ["main.py"], "main.py"),
        ({"../out.txt": file}, [], "no path inside"),
        ({"/etc/out.txt": file}, [], "no path inside"),
        ({"main.py/x.txt": file}, [], "is a file and a folder"),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            sdk.recipes.patch("lesson", files, delete=gone)
    with pytest.raises(InvalidRequestError, match="built in"):
        sdk.recipes.patch("sft", {"x.txt": file})
    with pytest.raises(EntityNotFoundError):
        sdk.recipes.patch("none", {"x.txt": file})
    assert files_of(plane, "lesson") == ["main.py", "notes.txt", "words.py"]


@on_both
def test_copies_can_be_changed(plane: Plane, sdk: Adaptive, recipe: Path) -> None:
    original = sdk.recipes.get("lesson")
    copy = sdk.recipes.duplicate("lesson")
    assert original is not None and copy.key is not None and copy.id != original.id
    assert (copy.name, copy.content_hash) == (f"{original.name} (copy)", original.content_hash)
    assert (copy.json_schema, copy.labels) == (original.json_schema, original.labels)
    own = sdk.recipes.duplicate("sft", "Our way", description="Slower.")
    assert (own.key, own.builtin, own.editable, own.description) == ("our-way", False, True, "Slower.")
    built_in = sdk.recipes.get("sft")
    assert built_in is not None and own.json_schema == built_in.json_schema
    assert sdk.recipes.update("our-way", description="Faster.").description == "Faster."
    sdk.recipes.delete("lesson")
    assert files_of(plane, copy.key) == ["main.py", "notes.txt", "words.py"]
    for key, why in (("our-way", "is taken"), ("sft", "built-in"), ("a b", "key")):
        with pytest.raises(InvalidRequestError, match=why):
            sdk.recipes.duplicate("sft", "Other", key)


def test_a_recipe_is_tried_without_being_kept(sdk: Adaptive, tmp_path: Path) -> None:
    file = tmp_path / "try.py"
    file.write_text(MAIN.replace("from .words import WORD", 'WORD = "red"'))
    assert sdk.recipes.parse_schema(file)["properties"]["word"]["default"] == "red"
    file.write_text("import nothing_of_the_kind\n")
    with pytest.raises(InvalidRequestError, match="nothing_of_the_kind"):
        sdk.recipes.parse_schema(file)
    assert all(recipe.builtin for recipe in sdk.recipes.list())
