"""Running recipes, and launching them as platforms do."""

import asyncio
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from harmonia.client.recipe import (
    InputConfig,
    JournalJobNotifier,
    RecipeContext,
    load_recipe,
    read_journal,
    recipe_main,
    run_recipe,
)
from harmonia.client.recipe.runner import (
    RunnerArgs,
    _async_main,
    _download_recipe_from_concorde,
    _get_params,
    _install_recipe_dependencies,
    _load_and_run_recipe,
    _parse_script_metadata,
)
from harmonia.errors import InvalidRequestError, UnavailableError
from tests.unit.client.small_worker import SmallWorker
from tests.unit.recipe.conftest import WriteRecipe

HEAD = "from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main\n"
MAIN = (
    HEAD
    + """
class Config(InputConfig):
    steps: int = 3

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    ctx.job.register_stages(["train"])
    ctx.job.stage_notifier("train").report_progress(config.steps, config.steps)
    if config.steps == 13:
        raise ValueError("unlucky")
    return config.steps
"""
)


async def test_a_recipe_runs(ctx: RecipeContext, journal: JournalJobNotifier, write: WriteRecipe) -> None:
    recipe = load_recipe(write({"main.py": MAIN}))
    assert await run_recipe(ctx, recipe, {"steps": 4}) == 4
    state = read_journal(journal.folder)
    assert state.recipe.endswith("recipes") and state.config == {"steps": 4, "union_variant": "Config"}
    assert state.stage("train").processed == 4


async def test_functions_run_too(ctx: RecipeContext) -> None:
    @recipe_main
    def main(context: RecipeContext) -> str:
        return context.job.job_id

    assert await run_recipe(ctx, main, {}) == "j1"


async def test_nothing_runs_with_bad_input(ctx: RecipeContext) -> None:
    class Missing(InputConfig):
        n: int

        async def check(self, ctx: RecipeContext) -> None:
            raise InvalidRequestError(f"{self.n} is not there")

    class Config(InputConfig):
        what: Missing

    def main(config: Config) -> None:
        pytest.fail("it ran")

    with pytest.raises(InvalidRequestError, match="what: 3 is not there"):
        await run_recipe(ctx, main, {"what": {"n": 3}})
    with pytest.raises(InvalidRequestError, match="does not fit Config:\n  what: missing"):
        await run_recipe(ctx, main, {})


async def test_input_for_a_recipe_without(ctx: RecipeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> str:
        return "ran"

    with pytest.raises(InvalidRequestError, match="main takes no input, but got steps"):
        await run_recipe(ctx, main, {"steps": 3})
    monkeypatch.setenv("USER_INPUT_JSON", '{"steps": 3}')
    assert await run_recipe(ctx, main) == "ran"  # what happens to be in the environment is not an order


# --------------------------------------------------------------------------------- launched by a platform


def launched(arguments: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The published entry point in a process of its own."""
    code = "from harmonia.client.recipe.runner import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env=os.environ | (env or {}), capture_output=True, text=True, timeout=100, check=False
    )


async def run_in_thread(arguments: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`launched`, while the worker in this process goes on."""
    return await asyncio.to_thread(launched, arguments, env)


async def test_launched_recipes_end_with_a_code(worker: SmallWorker, write: WriteRecipe, tmp_path: Path) -> None:
    recipe = write({"main.py": MAIN, "start.py": MAIN.replace("main(", "start(")})
    address = ["--harmony-url", worker.address, "--job-id", "j5", "--working-dir", str(tmp_path)]
    done = await run_in_thread([*address, "--recipe-key", str(recipe), "--entrypoint", "start.py"])
    assert done.returncode == 0, done.stderr
    assert "[job j5] train: 3/3 samples\n[job j5] complete\n" in done.stdout
    failed = await run_in_thread([*address, "--recipe-key", str(recipe)], {"USER_INPUT_JSON": '{"steps": 13}'})
    assert failed.returncode == 1 and "ValueError: unlucky" in failed.stderr and "complete" not in failed.stdout
    assert "[job j5] failed\nTraceback" in failed.stdout
    nothing = await run_in_thread(address)
    assert nothing.returncode == 1 and "recipe_key is missing" in nothing.stderr


async def test_launching_sets_the_jobs_id(
    worker: SmallWorker, write: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARMONY_JOB_ID", "to be replaced")
    monkeypatch.setattr("sys.argv", ["runner", "--harmony-url", worker.address, "--job-id", "j6"])
    args = RunnerArgs(recipe_key=str(write({"main.py": MAIN})))
    await _async_main(args)
    assert os.environ["HARMONY_JOB_ID"] == "j6"


async def test_published_behaviour_for_several_and_none(
    ctx: RecipeContext, write: WriteRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    twice = HEAD + "@recipe_main\ndef a(): ...\n@recipe_main\ndef b(): ...\n"
    folder = write({"two.py": twice, "none.py": "def main(): ...\n"})
    with pytest.raises(ValueError, match="several functions with @recipe_main: a, b"):
        await _load_and_run_recipe(ctx, str(folder / "two.py"))
    with caplog.at_level(logging.WARNING, "harmonia"):
        await _load_and_run_recipe(ctx, str(folder), "none.py")
    assert "has no @recipe_main" in caplog.text


async def test_parameters_in_the_order_of_the_function(ctx: RecipeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    class Config(InputConfig):
        steps: int

    def main(ctx: RecipeContext, other: int = 3, *, config: Config) -> None: ...

    monkeypatch.setenv("USER_INPUT_JSON", '{"steps": 8}')
    assert _get_params(main, ctx) == [ctx, Config(steps=8)]


async def test_recipes_from_the_platform(ctx: RecipeContext, tmp_path: Path) -> None:
    class Platform:
        """A control plane that has one recipe."""

        def get_recipe_download_url(self, recipe_key: str) -> str:
            return f"http://platform/{recipe_key}"

        def download_file(self, url: str, file_path: str) -> None:
            assert url == "http://platform/mine"
            with zipfile.ZipFile(file_path, "w") as recipe:
                recipe.writestr("main.py", MAIN)

    with pytest.raises(UnavailableError, match="'mine' is no file or folder"):
        _download_recipe_from_concorde(ctx, "mine")
    platform: Any = Platform()
    ctx.control_plane = platform
    folder = _download_recipe_from_concorde(ctx, "mine")
    assert folder == str(ctx.recipes_dir / "mine")
    assert await run_recipe(ctx, load_recipe(folder), {"steps": 2}) == 2
    with pytest.raises(InvalidRequestError, match=r"has no other.py"):
        _download_recipe_from_concorde(ctx, "mine", "other.py")


def test_what_the_recipe_needs_is_installed_first(
    write: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = '# /// adaptive\n# dependencies = ["pytest>=8"]\n# ///\n' + MAIN
    file = write({"main.py": text}) / "main.py"
    assert _parse_script_metadata(file) == ["pytest>=8"]
    _install_recipe_dependencies(file)
    assert not (tmp_path / "cache").exists()
    write({"main.py": text.replace("pytest>=8", "does-not-exist @ file:///nowhere")})
    with pytest.raises(InvalidRequestError, match="does-not-exist"):
        _install_recipe_dependencies(file.parent)
