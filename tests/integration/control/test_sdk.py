"""Our own client, synchronous and asynchronous, against a control plane with a tiny real model behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harmonia.config.control import ControlConfig
from harmonia.errors import (
    AuthenticationError,
    EntityNotFoundError,
    InvalidRequestError,
    PermissionDeniedError,
    UnavailableError,
)
from harmonia.sdk import Adaptive, AsyncAdaptive
from harmonia.sdk.files import UploadProgress
from tests.integration.control.conftest import ADMIN, Plane

PROJECT = "tickets"
RECIPE = """
from pydantic import Field
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main

class Config(InputConfig):
    word: str
    steps: int = Field(3, ge=1)

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    pass
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(ControlConfig(data_dir=tmp_path_factory.mktemp("plane"))) as plane:
        yield plane


@pytest.fixture(scope="module")
def sdk(running: Plane, tiny: Path) -> Iterator[Adaptive]:
    """The admin, with a project and the tiny model registered."""
    with Adaptive(base_url=running.url, api_key=running.api_key, default_project=PROJECT) as client:
        client.projects.create(PROJECT, "Tickets", "What customers ask")
        client.models.add(str(tiny), "Tiny", "tiny")
        yield client


def rows(file: Path, count: int, padding: int = 0) -> Path:
    """A file of so many questions and answers."""
    turn = [{"role": "user", "content": "?" + "x" * padding}]
    file.write_text("".join(json.dumps({"messages": turn, "completion": str(n)}) + "\n" for n in range(count)))
    return file


def test_people_come_and_go(running: Plane, sdk: Adaptive) -> None:
    me = sdk.users.me()
    assert me is not None
    assert (me.email, me.user_type) == (ADMIN, "HUMAN")
    assert sdk.teams.create("support").name == "support"
    role = sdk.roles.create("reader", ["project:read"])
    assert sdk.roles.add_permissions("reader", ["project:infer"]).permissions == ["project:infer", "project:read"]
    assert sdk.roles.remove_permissions(role.id, ["project:infer"]).permissions == ["project:read"]
    with pytest.raises(EntityNotFoundError, match="Role 'nobody'"):
        sdk.roles.add_permissions("nobody", [])
    person = sdk.users.create("ada@example.com", "Ada", [("support", "reader")])
    assert [item.team.key for item in person.teams] == ["support"]
    assert sdk.users.add_to_team("ada@example.com", "default", "reader").team.key == "default"
    assert [item.team.key for item in sdk.users.remove_from_team("ada@example.com", "support").teams] == ["default"]
    account = sdk.users.create_service_account("bot", [("support", "reader")])
    with Adaptive(running.url, account.generated_api_key, PROJECT) as bot:
        assert bot.projects.list() == []
        with pytest.raises(PermissionDeniedError, match="admin:manage_teams"):
            bot.teams.create("own")
        assert len(sdk.projects.share(PROJECT, "support", "reader").shares) == 2
        assert [project.key for project in bot.projects.list()] == [PROJECT]
        with pytest.raises(PermissionDeniedError):
            bot.projects.share(PROJECT, "support", "admin")
        assert len(sdk.projects.unshare(PROJECT, "support").shares) == 1
        assert bot.projects.get() is None
        sdk.users.delete(account.user.email)
        with pytest.raises(AuthenticationError):
            bot.users.me()


def test_a_model_is_deployed_and_answers_to_changes(sdk: Adaptive) -> None:
    with pytest.raises(InvalidRequestError, match="from 1 to 8"):
        sdk.models.deploy("tiny", num_draft_steps=9)
    service = sdk.models.deploy(model="tiny", wait=True, make_default=True, timeout_s=60)
    assert (service.key, service.is_default, service.model.online, service.status) == ("tiny", True, "ONLINE", "ONLINE")
    waiting = sdk.models.update("tiny", placement={"max_ttft_ms": 60_000}).placement
    assert waiting is not None
    assert (waiting.compute_pools, waiting.max_ttft_ms) == ([], 60_000)
    placed = sdk.models.update("tiny", placement={"compute_pools": ["default"]}).placement
    assert placed is not None
    assert (placed.compute_pools, placed.max_ttft_ms) == (["default"], 60_000)
    changed = sdk.models.update_compute_config("tiny", compute_config={"kv_cache_len": 4096})
    assert changed.compute_config is not None
    assert changed.compute_config.kv_cache_len == 4096
    assert [item.key for item in sdk.models.list({"view_all": True})] == ["tiny"]
    assert [item.id for item in sdk.projects.models()] == [service.id]
    with pytest.raises(EntityNotFoundError, match="'nothing'"):
        sdk.models.deploy("nothing")
    sdk.models.update("tiny", desired_online=False)
    assert sdk.models.detach("tiny")
    assert sdk.projects.models() == []


def test_a_model_that_does_not_fit_says_so(sdk: Adaptive, tiny: Path) -> None:
    sdk.models.add(str(tiny), "Greedy", "greedy")
    sdk.models.update_compute_config("greedy", {"kv_cache_len": 2_000_000_000})
    with pytest.raises(UnavailableError, match="failed to start"):
        sdk.models.deploy("greedy", wait=True, timeout_s=60)
    sdk.models.detach("greedy")


def test_an_external_model_keeps_its_key_to_itself(sdk: Adaptive) -> None:
    model = sdk.models.add_external("Far Away", "gpt-5", "sk-secret", "open_ai", endpoint="http://93.184.216.34:1/v1")
    assert (model.is_external, model.compute_config) == (True, None)
    assert "sk-secret" not in repr(model)


def test_a_small_data_set_goes_up_and_comes_down(sdk: Adaptive, tmp_path: Path) -> None:
    file, seen = rows(tmp_path / "small.jsonl", 3), list[UploadProgress]()
    dataset = sdk.datasets.upload(file, "small", on_progress=seen.append)
    assert (dataset.key, dataset.name, dataset.records) == ("small", "small", 3)
    assert [progress.sent_bytes for progress in seen] == [file.stat().st_size]
    assert sdk.datasets.download("small") == file.read_bytes()
    assert sdk.datasets.download("small", tmp_path / "copy.jsonl") == b""
    assert (tmp_path / "copy.jsonl").read_bytes() == file.read_bytes()
    with pytest.raises(EntityNotFoundError):
        sdk.datasets.download("nothing")
    assert dataset.id in {found.id for found in sdk.datasets.list()}
    assert sdk.datasets.delete("small")
    assert sdk.datasets.get("small") is None


def test_a_large_data_set_goes_up_in_parts_and_is_continued(sdk: Adaptive, tmp_path: Path) -> None:
    file, seen = rows(tmp_path / "large.jsonl", 6000, padding=2000), list[UploadProgress]()

    def stop_after_the_first(progress: UploadProgress) -> None:
        seen.append(progress)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sdk.datasets.upload(file, "large", on_progress=stop_after_the_first)
    session = seen[0].session_id
    seen.clear()
    dataset = sdk.datasets.upload(file, "large", on_progress=seen.append, session_id=session)
    assert dataset.records == 6000
    assert len(seen) == -(-file.stat().st_size // (5 * 1024**2)) - 1
    assert seen[-1].sent_bytes == file.stat().st_size
    assert sdk.datasets.download("large") == file.read_bytes()


def test_an_upload_that_is_given_up_cannot_be_continued(sdk: Adaptive, tmp_path: Path) -> None:
    file, seen = rows(tmp_path / "given-up.jsonl", 3000, padding=2000), list[UploadProgress]()

    def stop(progress: UploadProgress) -> None:
        seen.append(progress)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sdk.datasets.upload(file, "given-up", on_progress=stop)
    session = seen[0].session_id
    assert session is not None
    sdk.datasets.abort_upload(session)
    with pytest.raises(EntityNotFoundError):
        sdk.datasets.upload(file, "given-up", session_id=session)


def test_an_upload_with_a_wrong_line_says_which(sdk: Adaptive, tmp_path: Path) -> None:
    file = rows(tmp_path / "wrong.jsonl", 3000, padding=2000)
    with file.open("a") as lines:
        lines.write("{nonsense\n")
    with pytest.raises(InvalidRequestError, match="3001"):
        sdk.datasets.upload(file, "wrong")
    assert sdk.datasets.get("wrong") is None


def test_recipes_are_published_and_replaced(sdk: Adaptive, tmp_path: Path) -> None:
    file = tmp_path / "My_Lesson.py"
    file.write_text(RECIPE)
    recipe = sdk.recipes.upload(file, labels={"kind": "test"})
    assert (recipe.key, recipe.json_schema["required"]) == ("my-lesson", ["word"])
    file.write_text(RECIPE.replace("word", "letter"))
    same = sdk.recipes.upsert(file, description="Teaches letters.")
    assert (same.id, same.description) == (recipe.id, "Teaches letters.")
    assert same.content_hash != recipe.content_hash
    assert sdk.recipes.update("my-lesson", name="Letters").content_hash == same.content_hash
    assert "my-lesson" in {found.key for found in sdk.recipes.list()}
    assert [found.key for found in sdk.recipes.list(labels={"kind": ["test"]})] == ["my-lesson"]
    assert sdk.recipes.delete("my-lesson")
    assert sdk.recipes.get("my-lesson") is None


async def test_the_asynchronous_client_does_the_same(running: Plane, sdk: Adaptive, tmp_path: Path) -> None:
    async with AsyncAdaptive(running.url, running.api_key, PROJECT) as client:
        assert (await client.projects.get()) == sdk.projects.get()
        dataset = await client.datasets.upload(rows(tmp_path / "a.jsonl", 2), "from-async")
        assert await client.datasets.download(dataset.id) == (tmp_path / "a.jsonl").read_bytes()
        assert await client.datasets.download(dataset.id, tmp_path / "b.jsonl") == b""
        assert (tmp_path / "b.jsonl").stat().st_size == (tmp_path / "a.jsonl").stat().st_size
        with pytest.raises(EntityNotFoundError):
            await client.models.deploy("nothing")
    async with AsyncAdaptive(running.url, "wrong") as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.users.me()
