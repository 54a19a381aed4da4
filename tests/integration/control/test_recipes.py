"""Recipes of projects through the published SDK: what may be uploaded, and what is made of it."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError

from harmonia.errors import InvalidRequestError
from harmonia.server.services.jobs.archives import read_upload
from tests.integration.control.asking import data, make_project, share_project
from tests.integration.control.conftest import Plane

RECIPE = """
from typing import Annotated
from pydantic import Field
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main

class Config(InputConfig):
    steps: Annotated[int, Field(ge=1, title="Steps")] = 3
    word: str
    note: str | None = None

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    pass
"""


@pytest.fixture
def sdk(plane: Plane, adaptive: Adaptive) -> Adaptive:
    """With a project."""
    make_project(plane, "lab")
    adaptive.set_default_project("lab")
    return adaptive


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A file."""
    file = tmp_path / "My_lesson.py"
    file.write_text(RECIPE)
    return file


def post_zip(plane: Plane, entries: list[tuple[str | zipfile.ZipInfo, str]], name: str = "dir.zip") -> str:
    """Upload a zip as nobody's SDK would make it; the errors."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in entries:
            archive.writestr(path, text)
    return post(plane, name, content.getvalue())


def post(plane: Plane, name: str, content: bytes) -> str:
    """Upload anything; the errors."""
    query = """mutation ($file: Upload!) {
      createCustomRecipe(project: "lab", input: {name: "x"}, file: $file) { id } }"""
    operations = json.dumps({"query": query, "variables": {"file": None}})
    answer = httpx.post(
        f"{plane.url}/api/graphql",
        data={"operations": operations, "map": '{"0": ["variables.file"]}'},
        files={"0": (name, content)},
        headers={"Authorization": f"Bearer {plane.api_key}"},
        timeout=60,
    )
    assert answer.status_code == 200
    return " ".join(error["message"] for error in answer.json().get("errors", []))


def test_a_file_becomes_a_recipe_with_a_schema(plane: Plane, sdk: Adaptive, recipe: Path) -> None:
    made = sdk.recipes.upload(str(recipe), labels={"team": "blue"}, description="Three steps.")
    assert (made.key, made.builtin, made.editable, made.content) == ("my-lesson", False, True, RECIPE)
    assert len(made.content_hash) == 64 and made.created_by and made.created_by.email == "admin@example.com"
    schema = made.json_schema
    assert schema["required"] == ["word"] and schema["properties"]["steps"]["type"] == "integer"
    assert all("description" in each for each in schema["properties"].values())
    assert {"oneOf", "description"} <= set(schema["properties"]["note"])
    query = """query ($value: String!) {
      customRecipes(project: "lab", filter: {labels: [{key: "team", value: [$value]}]}) { key contentFiles } }"""
    assert data(plane, query, {"value": "blue"})["customRecipes"] == [
        {"key": "my-lesson", "contentFiles": ["My_lesson.py"]}
    ]
    assert data(plane, query, {"value": "red"})["customRecipes"] == []
    with pytest.raises(GraphQLClientGraphQLMultiError, match="taken"):
        sdk.recipes.upload(str(recipe))


def test_built_in_recipes_are_in_every_project_and_cannot_be_changed(plane: Plane, sdk: Adaptive, recipe: Path) -> None:
    sft = next(item for item in sdk.recipes.list() if item.key == "sft")
    assert sft.builtin and sft.global_ and not sft.editable and sft.name == "Supervised fine-tuning"
    assert sft.json_schema["properties"]["model_to_train"]["type"] == "string"
    assert {"model_to_train", "output_model_key", "dataset"} == set(sft.json_schema["required"])
    found = sdk.recipes.get(str(sft.id))
    assert found and found.model_dump() == sft.model_dump()
    with pytest.raises(GraphQLClientGraphQLMultiError, match="built in"):
        sdk.recipes.delete("sft")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="built-in"):
        sdk.recipes.upload(str(recipe), recipe_key="sft")


def test_a_folder_is_updated_and_downloaded(plane: Plane, sdk: Adaptive, tmp_path: Path) -> None:
    folder = tmp_path / "lesson"
    folder.mkdir()
    words, main = RECIPE.split("@recipe_main")
    (folder / "words.py").write_text(words)
    (folder / "main.py").write_text(
        f"from harmonia.client.recipe import RecipeContext, recipe_main\nfrom .words import Config\n@recipe_main{main}"
    )
    first = sdk.recipes.upload(str(folder))
    (folder / "words.py").write_text((folder / "words.py").read_text().replace("steps", "epochs"))
    second = sdk.recipes.update("lesson", path=str(folder), name="Better")
    assert first.key == second.key == "lesson" and second.name == "Better"
    assert first.content_hash != second.content_hash and second.updated_at
    assert "epochs" in second.json_schema["properties"] and "steps" not in second.json_schema["properties"]
    renamed = sdk.recipes.update("lesson", description="What it is.")
    assert (renamed.name, renamed.description, renamed.content_hash) == ("Better", "What it is.", second.content_hash)
    answer = httpx.get(
        f"{plane.url}/api/v1/projects/lab/recipes/lesson/download",
        headers={"Authorization": f"Bearer {plane.api_key}"},
    )
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == "attachment; filename*=utf-8''lesson.zip"
    assert answer.headers["x-content-type-options"] == "nosniff"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert sorted(archive.namelist()) == ["main.py", "words.py"]
    assert sdk.recipes.delete("lesson")
    assert sdk.recipes.get("lesson") is None
    assert sdk.recipes.upload(str(folder)).key == "lesson"


def test_archives_that_lead_elsewhere_are_refused(plane: Plane, sdk: Adaptive) -> None:
    for path in ("../main.py", "/etc/main.py", "a/../../main.py", "a\\main.py", "C:/main.py", "a//main.py"):
        assert "no path inside" in post_zip(plane, [(path, RECIPE)]), path
    assert "no main.py" in post_zip(plane, [("other.txt", ""), ("b.txt", "")])
    for path in ("\N{SNOWMAN}" * 100 + ".py", "a" * 300 + ".py"):
        assert "at most 255 bytes" in post_zip(plane, [("main.py", RECIPE), (path, "")]), path[:5]
        assert "at most 255 bytes" in post(plane, path, RECIPE.encode()), path[:5]
    assert "is a file and a folder" in post_zip(plane, [("main.py", RECIPE), ("a", ""), ("a/b", "")])


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_broken_zip_is_refused_however_it_was_packed(method: int) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.writestr("main.py", "".join(map(str, range(1000))))
    whole = target.getvalue()
    for place in range(40, 300, 7):  # past the name of the file
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        with pytest.raises(InvalidRequestError, match="no zip that can be read"):
            read_upload("x.zip", bytes(broken))


def test_archives_that_are_no_recipes_are_refused(plane: Plane, sdk: Adaptive) -> None:
    link = zipfile.ZipInfo("main.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "link" in post_zip(plane, [(link, "/etc/passwd")])
    assert "at most 1000" in post_zip(plane, [(f"{number}.py", "") for number in range(1001)])
    assert "together" in post_zip(plane, [(f"{number}.py", " " * (7 << 20)) for number in range(10)])
    assert "neither a .py file" in post(plane, "x.txt", b"hello")
    assert "no Python file" in post(plane, "x.py", b"\xff\xfe")
    assert "bytes, a recipe at most" in post(plane, "x.py", b"#" * ((16 << 20) + 1))


def test_recipes_that_cannot_be_imported_say_why(plane: Plane, sdk: Adaptive) -> None:
    sources = {
        "import nowhere_to_be_found": "No module named 'nowhere_to_be_found'",
        "x = 1": "no @recipe_main",
        "def broken(:": "SyntaxError",
        "raise KeyError('hm')": "KeyError: 'hm'",
        "import os; os._exit(7)": "exit code 7",
        "x = bytearray(64 << 30)": "MemoryError",
    }
    for source, why in sources.items():
        message = post(plane, "x.py", source.encode())
        assert why in message and "/tmp" not in message, source
    assert sdk.recipes.get("x") is None


def test_code_runs_outside_of_the_server_and_without_its_environment(
    plane: Plane, sdk: Adaptive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTIVE_APP__SECRET", "topsecret")
    source = "import os, json\nraise ValueError(json.dumps(dict(os.environ)) + str(os.getppid()))"
    message = post(plane, "x.py", source.encode())
    assert "topsecret" not in message and "PATH" in message


def test_others_may_not_see_or_change_them(
    plane: Plane, sdk: Adaptive, recipe: Path, adaptive_as: Callable[[str], Adaptive]
) -> None:
    sdk.recipes.upload(str(recipe))
    sdk.teams.create("guests", "Guests")
    account = sdk.users.create_service_account(name="guest", teams_with_role=[("guests", "read-only")])
    guest = adaptive_as(account.api_key)
    with pytest.raises(GraphQLClientGraphQLMultiError, match="project:read"):
        guest.recipes.list(project="lab")
    share_project(plane, "lab", "guests", "read-only")
    assert guest.recipes.get("my-lesson", project="lab")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="project:adapt"):
        guest.recipes.delete("my-lesson", project="lab")
