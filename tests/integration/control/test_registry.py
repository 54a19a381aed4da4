"""Settings of models, and how models leave the registry."""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from harmonia.cli.main import app
from harmonia.client.recipe.http_plane import HttpControlPlane
from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.sdk import Adaptive
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import Job
from harmonia.server.db.people import User
from harmonia.server.db.projects import Project
from harmonia.server.services.models.models import Models, NewModel
from harmonia.server.services.secrets import Secrets
from tests.integration.control.asking import data, refusal
from tests.integration.control.conftest import ADMIN, Plane, on_both

T = TypeVar("T")

PROJECT = "lab"
RECIPE = """
from harmonia.client.parameters import Model
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main

class Config(InputConfig):
    models: list[Model]

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    pass
"""


@pytest.fixture
def ours(plane: Plane, tiny: Path) -> Iterator[Adaptive]:
    """Our SDK as the admin, with a project and the tiny model."""
    with Adaptive(plane.url, plane.api_key, default_project=PROJECT) as client:
        client.projects.create(PROJECT)
        client.models.add(str(tiny), "Tiny", "tiny")
        yield client


@pytest.fixture
def adapter(tiny: Path, tiny_adapters: tuple[Path, ...], tmp_path: Path) -> Path:
    return adapter_of(tiny, tiny_adapters[0], tmp_path / "adapter")


def adapter_of(base: Path, source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(base)}))
    return folder


def made_by_a_job(plane: Plane, source: Path, key: str) -> Path:
    """A model whose files a job put into the registry; they."""

    async def register(database: Database) -> None:
        assert plane.services is not None
        models = Models(database, plane.config.registry, Secrets(plane.config), plane.services.external)
        await models.register(None, NewModel(path=f"model_registry://{key}", name=key, key=key, job_id=uuid.uuid4()))

    entry = plane.config.registry / key
    shutil.copytree(source, entry)
    with_database(plane, register)
    return entry


def with_database(plane: Plane, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do something in the database of a plane, beside it."""

    async def run() -> T:
        database = Database(plane.config.database_address)
        try:
            return await work(database)
        finally:
            await database.close()

    return asyncio.run(run())


# ------------------------------------------------------------------------------------------------------- settings


@on_both
def test_settings_are_inherited_and_taken_back(plane: Plane, ours: Adaptive, adapter: Path) -> None:
    ours.models.add(str(adapter), "Support", "support")
    changes = {"kv_cache_len": 4096, "max_seq_len": 300, "tokens_to_generate": 7}
    set_ = ours.models.update_compute_config("tiny", changes)
    assert (set_.compute_settings.tp, set_.compute_settings.tokens_to_generate) == (None, 7)
    assert (set_.compute_config.kv_cache_len, set_.compute_config.max_seq_len) == (4096, 300)
    jobs = HttpControlPlane(plane.url, plane.api_key, PROJECT)
    found = [asyncio.run(jobs.get_model_config(key)) for key in ("tiny", "support")]
    jobs.close()
    inherited = [(item.kv_cache_len, item.max_seq_len, item.tokens_to_generate) for item in found]
    assert inherited == [(4096, 300, 7), (4096, 300, None)]
    back = ours.models.update_compute_config("tiny", {"kv_cache_len": None, "tokens_to_generate": None})
    assert (back.compute_settings.kv_cache_len, back.compute_settings.max_seq_len) == (None, 300)
    assert (back.compute_config.kv_cache_len, back.compute_config.max_seq_len) == (131_072, 300)
    assert ours.models.update_compute_config("support", {"tokens_to_generate": 5}).compute_settings.max_seq_len == 300
    for wrong in ({"tp": 2}, {"max_seq_len": 513}, {"tokens_to_generate": 513}, {"tokens_to_generate": 0}):
        with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
            ours.models.update_compute_config("tiny", wrong)
    with pytest.raises(InvalidRequestError, match="change its base model's"):
        ours.models.update_compute_config("support", {"kv_cache_len": None})


def test_answers_are_as_long_as_the_model_says_unless_the_request_does(plane: Plane, ours: Adaptive) -> None:
    ours.models.update_compute_config("tiny", {"tokens_to_generate": 3, "kv_cache_len": 4096})
    ours.models.deploy("tiny", wait=True)

    def length(path: str, **body: object) -> int:
        answer = httpx.post(
            f"{plane.url}/api/v1/{path}",
            json={"model": f"{PROJECT}/tiny", "ignore_eos": True, "temperature": 0, **body},
            headers={"Authorization": f"Bearer {plane.api_key}"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["completion_tokens"]

    messages = [{"role": "user", "content": "What is blue?"}]
    assert length("chat/completions", messages=messages) == 3
    assert length("chat/completions", messages=messages, max_tokens=5) == 5
    assert length("completions", prompt="Blue is") == 3
    ours.models.update_compute_config("tiny", {"tokens_to_generate": None})
    assert length("completions", prompt="Blue is") == 16


def test_a_placement_keeps_what_it_does_not_name(plane: Plane, ours: Adaptive) -> None:
    ours.models.add_to_project("tiny")

    def placed(**placement: object) -> tuple[list[str], int | None] | None:
        now = ours.models.update("tiny", placement=placement).placement
        return None if now is None else (now.compute_pools, now.max_ttft_ms)

    assert placed(max_ttft_ms=900) == ([], 900)
    assert placed(compute_pools=["default"]) == (["default"], 900)
    assert placed(max_ttft_ms=None) == (["default"], None)
    assert placed(compute_pools=None) is None
    for wrong, words in (({"compute_pools": []}, "at least one"), ({"max_ttft_ms": 0}, "must be 1 or more")):
        with pytest.raises(InvalidRequestError, match=words):
            ours.models.update("tiny", placement=wrong)
    with pytest.raises(EntityNotFoundError, match="'moon' does not exist"):
        ours.models.update("tiny", placement={"compute_pools": ["moon"]})


def test_an_unknown_model_is_refused_with_those_that_there_are(plane: Plane, ours: Adaptive, tmp_path: Path) -> None:
    with pytest.raises(EntityNotFoundError, match="Model 'tinny' does not exist; nearest are 'tiny'"):
        ours.models.deploy("tinny")
    with pytest.raises(EntityNotFoundError, match="there is 'tiny'"):
        ours.models.update_compute_config("zzzzzz", {"kv_cache_len": 64})
    file = tmp_path / "lesson.py"
    file.write_text(RECIPE)
    recipe = ours.recipes.upload(file, "lesson")
    with pytest.raises(InvalidRequestError, match=r"models\[1\]: Model 'tinny' does not exist; nearest are 'tiny'"):
        ours.jobs.run(recipe.key, args={"models": ["tiny", "tinny"]})
    assert ours.jobs.list().nodes == []


# ------------------------------------------------------------------------------------------------------- deletion


@on_both
def test_a_model_in_use_is_not_deleted(
    plane: Plane, ours: Adaptive, tiny: Path, tiny_adapters: tuple[Path, ...], tmp_path: Path
) -> None:
    entry = made_by_a_job(plane, tiny, "trained")
    adapter = adapter_of(entry, tiny_adapters[0], tmp_path / "adapter")
    ours.models.add(str(adapter), "Support", "support")
    ours.models.add(str(entry), "Alias", "alias")
    ours.graders.create.binary_judge(key="strict", criteria="Is it blue?", judge_model="trained")
    ours.models.deploy("trained")
    job_id = running_job(plane, {"models": ["model_registry://trained"]})
    wanted = (
        f"deployed in {PROJECT}; terminate it first",
        "the base of the adapters support; delete them first",
        f"jobs {job_id} use it",
        f"graders {PROJECT}/strict judge with it",
        "its files are also those of alias",
    )
    refused = refusal(plane, 'mutation { deleteModel(input: {model: "trained"}) }')
    for words in wanted:
        assert words in refused
    assert entry.is_dir()
    ours.models.terminate("trained")
    ours.jobs.cancel(job_id)
    ours.graders.delete("strict")
    for key in ("support", "alias", "trained"):
        assert ours.models.delete(key)
    assert [model.key for model in ours.models.list()] == ["tiny"]
    assert adapter.is_dir(), "files that were there before stay"
    assert not entry.exists(), "files that a job made go"
    assert {path.name for path in plane.config.registry.iterdir()} == {"tiny"}
    with pytest.raises(EntityNotFoundError, match="'trained' does not exist"):
        ours.models.delete("trained")


def test_a_deleted_key_is_free_again_and_interactions_keep_the_name(plane: Plane, ours: Adaptive, tiny: Path) -> None:
    ours.models.add_to_project("tiny")
    ours.interactions.create([{"role": "user", "content": "hello"}], "hi", model="tiny")
    first = ours.models.get("tiny").id
    assert ours.models.delete("tiny")
    assert ours.projects.models() == []
    assert tiny.is_dir()
    assert not (plane.config.registry / "tiny").exists()
    again = ours.models.add(str(tiny), "Tiny", "tiny")
    assert again.id != first
    query = """query ($filter: ListCompletionsFilterInput!) {
      completions(page: {first: 1}, filter: $filter) { nodes { model { id name } } } }"""
    shown = data(plane, query, {"filter": {"project": PROJECT}})
    assert shown["completions"]["nodes"] == [{"model": {"id": first, "name": "Tiny"}}]


def test_leaving_the_last_project_deletes_what_is_not_published(plane: Plane, ours: Adaptive, tiny: Path) -> None:
    entry = made_by_a_job(plane, tiny, "draft")
    ours.projects.create("other")
    hide = 'mutation { updateModel(input: {model: "draft", published: false}) { isPublished } }'
    assert not data(plane, hide)["updateModel"]["isPublished"]
    for project in (PROJECT, "other"):
        ours.models.add_to_project("draft", project)
    assert ours.models.detach("draft", "other")
    assert entry.is_dir()
    assert ours.models.detach("draft")
    assert ours.models.get("draft") is None
    assert not entry.exists()
    ours.models.add_to_project("tiny")
    assert ours.models.detach("tiny")
    assert ours.models.get("tiny") is not None


def running_job(plane: Plane, args: dict[str, object]) -> str:
    """One that a server would be running."""

    async def add(database: Database) -> str:
        async with database.begin() as session:
            project = (await session.execute(select(Project).where(Project.key == PROJECT))).scalar_one()
            user = (await session.execute(select(User).where(User.email == ADMIN))).scalar_one()
            job = Job(
                project_id=project.id,
                name="runs",
                status="RUNNING",
                recipe_id=uuid.uuid4(),
                recipe_key="lesson",
                entrypoint="main.py",
                args=args,
                num_gpus=1,
                created_by=user.id,
            )
            session.add(job)
            await session.flush()
            return str(job.id)

    return with_database(plane, add)


# -------------------------------------------------------------------------------------------------------- commands


def test_the_commands_do_the_same(
    plane: Plane, ours: Adaptive, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARMONIA_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("ADAPTIVE_BASE_URL", plane.url)
    monkeypatch.setenv("ADAPTIVE_API_KEY", plane.api_key)
    monkeypatch.setenv("DEFAULT_PROJECT", PROJECT)
    monkeypatch.setenv("COLUMNS", "200")

    def harmonia(*arguments: str, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(app, ["model", *arguments])
        assert result.exit_code == exit_code, result.output
        return result

    added = harmonia("add", str(tiny), "--key", "second").stdout.strip()
    assert ours.models.get("second").id == added
    harmonia("configure", "second", "--kv-cache-len", "64", "--tokens-to-generate", "9")
    harmonia("configure", "second", "--reset", "kv-cache-len")
    settings = ours.models.get("second").compute_settings
    assert (settings.kv_cache_len, settings.tokens_to_generate) == (None, 9)
    assert "none of tp" in harmonia("configure", "second", "--reset", "colour", exit_code=1).output
    assert "nothing is to change" in harmonia("configure", "second", exit_code=1).output
    assert "'tiny'" in harmonia("deploy", "tinny", exit_code=1).output
    monkeypatch.setenv("FORCE_COLOR", "1")
    told = harmonia("describe", "second").stdout
    assert all(word in told for word in ("base model", "llama", "107,072", "131072 (default)", "OFFLINE"))
    harmonia("delete", "second")
    assert "harmonia models --all" in harmonia("describe", "second", exit_code=1).output
