"""Recipes with the import names and in the shapes of the public documentation run as they are, on a real worker."""

import asyncio
import json
import random
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from adaptive_harmony import StringThread, get_client
from adaptive_harmony.runtime import RecipeConfig, RecipeContext
from adaptive_harmony.runtime.runner import _load_and_run_recipe

from harmonia.client.recipe import load_recipe, run_recipe
from harmonia.errors import InvalidRequestError
from tests.bare_worker import bare_worker
from tests.integration.tiny_model import make_model

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "sun": "gold"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    make_model(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def address(registry: Path) -> Iterator[str]:
    with bare_worker(registry) as address:
        yield address


@pytest.fixture
async def ctx(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RecipeContext]:
    monkeypatch.setenv("RECIPE_CHECKPOINTS_DIR", str(tmp_path / "checkpoints"))
    monkeypatch.chdir(tmp_path)
    config = RecipeConfig(harmony_url=address, working_dir=str(tmp_path / "work"), job_id="a-job")
    async with RecipeContext.from_config(config) as context:
        yield context


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """The recipes in a folder of their own: evaluations are written beside the recipe that calls for them."""
    return Path(shutil.copytree(Path(__file__).parent / "published_recipes", tmp_path / "recipes"))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as a JSONL file; its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def lessons() -> list[dict[str, Any]]:
    """What things look like, as conversations."""
    return [
        {"messages": [{"role": "user", "content": f"{thing}?"}, {"role": "assistant", "content": colour}]}
        for thing, colour in COLOURS.items()
    ] * 2


def pairs() -> list[dict[str, Any]]:
    """A better and a worse answer to each question."""
    rng = random.Random(0)
    return [
        {
            "input": [{"role": "user", "content": f"{thing}?"}],
            "preferred_completion": colour,
            "other_completion": "".join(rng.choices("xyz", k=5)),
        }
        for thing, colour in COLOURS.items()
    ]


def local(path: str) -> dict[str, str]:
    """A dataset that is a file here."""
    return {"dataset_key": "local-file", "local_file_path": path}


async def test_finetune(
    ctx: RecipeContext, recipes: Path, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"model_to_train": "tiny", "dataset": local(write(tmp_path / "rows.jsonl", lessons()))}
    await run_recipe(ctx, load_recipe(recipes / "finetune.py"), given)
    assert (registry / "student").is_dir()
    assert "loss" in capsys.readouterr().out
    thread = StringThread([("user", "sky?"), ("assistant", "blue")])
    kept = await ctx.client.model("model_registry://student", kv_cache_len=4096).spawn_inference("after")
    base = await ctx.client.model("model_registry://tiny", kv_cache_len=4096).spawn_inference("before")
    assert await kept.logprobs(thread) > await base.logprobs(thread) + 1


async def test_preferences(ctx: RecipeContext, recipes: Path, registry: Path, tmp_path: Path) -> None:
    given = {"policy": "tiny", "pairs": local(write(tmp_path / "pairs.jsonl", pairs()))}
    await run_recipe(ctx, load_recipe(recipes / "preferences"), given)
    assert (registry / "polite").is_dir() and (registry / "polite-reward").is_dir()


async def test_custom_loss(ctx: RecipeContext, recipes: Path, registry: Path) -> None:
    await run_recipe(ctx, load_recipe(recipes / "custom_loss.py"), None)
    assert (registry / "focal").is_dir()


async def test_evaluate(ctx: RecipeContext, recipes: Path, tmp_path: Path) -> None:
    prompts = [{"input": [{"role": "user", "content": f"{thing}?"}]} for thing in COLOURS]
    given = {"models": ["tiny"], "prompts": local(write(tmp_path / "prompts.jsonl", prompts))}
    await run_recipe(ctx, load_recipe(recipes / "evaluate.py"), given)
    (page,) = recipes.glob("adaptive_eval_samples/*/evaluation_samples.html")
    assert "shortness" in page.read_text(encoding="utf-8")
    artifacts = tmp_path / "work" / "job_a-job" / "artifacts"
    assert "of 6" in "".join(path.read_text(encoding="utf-8") for path in artifacts.rglob("notes.txt"))


async def test_the_runner_of_the_published_name(
    ctx: RecipeContext, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the input from the environment or a file, and calls the one marked function of the entry point."""
    given = {"policy": "tiny", "pairs": local(write(tmp_path / "pairs.jsonl", pairs())), "kl_beta": 0.2}
    monkeypatch.setenv("USER_INPUT_JSON", json.dumps(given))
    await _load_and_run_recipe(ctx, str(recipes / "preferences"))


@pytest.mark.parametrize(("kl_beta", "code"), [(0.2, 0), ("much", 1)])
async def test_launched_as_a_platform_does(
    address: str, recipes: Path, tmp_path: Path, kl_beta: object, code: int
) -> None:
    given = {"policy": "tiny", "pairs": local(write(tmp_path / "pairs.jsonl", pairs())), "kl_beta": kl_beta}
    (tmp_path / "input.json").write_text(json.dumps(given), encoding="utf-8")
    options = {"harmony-url": address, "recipe-key": recipes / "preferences", "working-dir": tmp_path / "work"}
    options["user-input-file"] = tmp_path / "input.json"
    command = [sys.executable, "-m", "adaptive_harmony.runtime.runner"]
    command += [f"--{name}={value}" for name, value in options.items()]
    runner = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, errors = await runner.communicate()
    assert runner.returncode == code, errors.decode()
    assert ("kl_beta" in errors.decode()) == bool(code)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"model_to_train": "tiny"}, "dataset"),
        ({"model_to_train": "tinny", "dataset": "rows.jsonl"}, "model_to_train"),
        ({"model_to_train": "tiny", "dataset": "rows.jsonl", "learning_rate": "fast"}, "learning_rate"),
    ],
)
async def test_bad_input_names_the_field(
    ctx: RecipeContext, recipes: Path, tmp_path: Path, given: dict[str, Any], field: str
) -> None:
    write(tmp_path / "rows.jsonl", lessons())
    with pytest.raises(InvalidRequestError, match=field):
        await run_recipe(ctx, load_recipe(recipes / "finetune.py"), given)


async def test_in_a_notebook(address: str) -> None:
    """Without a context, a client is all that is needed."""
    client = await get_client(address, num_gpus=1)
    model = await client.model("model_registry://tiny", kv_cache_len=4096, tokens_to_generate=8).spawn_train("m", 256)
    thread = StringThread([("system", "Be brief."), ("user", "sky?")], metadata={"id": 1})
    answered = await model.temperature(0.0).generate(thread)
    assert answered.messages() == [("system", "Be brief."), ("user", "sky?")] and answered.metadata == {"id": 1}
    tokens = await model.generate_tokens(thread)
    logprobs = await model.logprobs_per_token(tokens)
    assert len(logprobs) == tokens.len_last_turn()
    await model.train_grpo(tokens, logprobs, logprobs, [1.0] * len(logprobs), 0.1, 0.01)
    assert {"loss", "grad_norm"} <= set(await model.optim_step(1e-4, 0, 1.0, False))
    client.close()
