"""Jobs through our own client and the command line: started, watched, named, cancelled."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harmonia.cli.main import app
from harmonia.config.control import ControlConfig
from harmonia.errors import DeadlineExceededError, EntityNotFoundError, HarmoniaError
from harmonia.sdk import Adaptive, AsyncAdaptive
from harmonia.sdk.operations.jobs import Job
from tests.integration.control.conftest import Plane

PROJECT = "lab"
RECIPE = """
import asyncio
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main

class Config(InputConfig):
    word: str
    wait: bool = False

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    print("the word is", config.word)
    if config.word == "bad":
        raise ValueError("that is a bad word")
    if config.wait:
        await asyncio.sleep(600)
"""
Harmonia = Callable[..., Result]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(ControlConfig(data_dir=tmp_path_factory.mktemp("plane"))) as plane:
        yield plane


@pytest.fixture(scope="module")
def sdk(running: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adaptive]:
    """The admin of a project with a recipe."""
    file = tmp_path_factory.mktemp("recipe") / "lesson.py"
    file.write_text(RECIPE)
    with Adaptive(running.url, running.api_key, PROJECT) as client:
        client.projects.create(PROJECT)
        client.recipes.upload(file)
        yield client


@pytest.fixture
def harmonia(running: Plane, sdk: Adaptive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harmonia:
    """Run a command as the admin in the project; its output is not a terminal."""
    monkeypatch.setenv("HARMONIA_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("ADAPTIVE_BASE_URL", running.url)
    monkeypatch.setenv("ADAPTIVE_API_KEY", running.api_key)
    monkeypatch.setenv("DEFAULT_PROJECT", PROJECT)

    def run(*arguments: str, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == exit_code, result.output
        return result

    return run


def test_a_job_is_watched_to_its_end(sdk: Adaptive, harmonia: Harmonia) -> None:
    seen: list[Job] = []
    job = sdk.jobs.run(recipe_key="lesson", num_gpus=0, args={"word": "hello"}, name="First")
    with pytest.raises(DeadlineExceededError, match="it goes on"):
        sdk.jobs.wait(job, timeout_s=0)
    done = sdk.jobs.wait(job, on_progress=seen.append, timeout_s=60)
    assert (done.status, done.name, seen[-1]) == ("COMPLETED", "First", done), sdk.jobs.logs(job.id)
    assert "the word is hello" in sdk.jobs.logs(job.id)
    assert "the word is hello" in harmonia("job", job.id, "--logs").stdout
    assert sdk.jobs.update(job.id, "Renamed").name == "Renamed"
    assert harmonia("jobs", "--server").stdout.splitlines()[0] == job.id


async def test_a_job_that_fails_says_why(running: Plane, sdk: Adaptive, harmonia: Harmonia) -> None:
    (job_id,) = harmonia("launch", "lesson", "-g", "0", "--", "--word", "bad").stdout.splitlines()
    async with AsyncAdaptive(running.url, running.api_key, PROJECT) as client:
        failed = await client.jobs.wait(job_id, timeout_s=60)
    assert failed.status == "FAILED"
    assert "that is a bad word" in (failed.error or "")
    shown = harmonia("job", job_id, "--follow", exit_code=1)
    assert shown.stdout == f"{job_id}\n"
    assert "that is a bad word" in shown.stderr
    page = sdk.jobs.list(PROJECT, {"status": ["FAILED"]}, {"first": 1})
    assert ([item.id for item in page.nodes], page.total_count) == ([job_id], 1)
    assert sdk.jobs.delete(job_id)
    assert sdk.jobs.get(job_id) is None
    assert "there is no job" in harmonia("job", job_id, exit_code=1).stderr


def test_a_job_is_cancelled(sdk: Adaptive, harmonia: Harmonia) -> None:
    (job_id,) = harmonia("launch", "lesson", "-g", "0", "--", "--word", "x", "--wait").stdout.splitlines()
    began = time.monotonic()
    assert harmonia("cancel", job_id).stdout == f"{job_id}\n"
    assert sdk.jobs.wait(job_id, timeout_s=30).status == "CANCELED"
    assert time.monotonic() - began < 30


def test_what_cannot_run_is_refused(sdk: Adaptive, harmonia: Harmonia) -> None:
    with pytest.raises(HarmoniaError, match="word"):
        sdk.jobs.run("lesson", 0, {"letter": "x"})
    with pytest.raises(EntityNotFoundError):
        sdk.jobs.run("nothing", 0)
    with pytest.raises(EntityNotFoundError):
        sdk.jobs.cancel(str(uuid.uuid4()))
    assert "lists them" in harmonia("launch", "nothing", exit_code=1).stderr
