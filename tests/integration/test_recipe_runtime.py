"""Recipes on a real worker: what they make, what stops them before anything is loaded, and what they leave behind."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harmonia.client.recipe import (
    JournalJobNotifier,
    RecipeConfig,
    RecipeContext,
    load_recipe,
    read_journal,
    read_metrics,
    run_recipe,
)
from harmonia.errors import InvalidRequestError
from tests.bare_worker import bare_worker
from tests.integration.tiny_model import make_model

CONFIG = '''
from __future__ import annotations

from harmonia.client.parameters import Dataset, Model
from harmonia.client.recipe import InputConfig


class Config(InputConfig):
    """What to train, and on what."""

    model: Model
    dataset: Dataset
    output: str = "taught"
    steps: int = 2
    fail_at: int | None = None
    wait_at: int | None = None
'''
MAIN = """
from __future__ import annotations

import asyncio

import naming
from harmonia.client.artifacts import CustomArtifact, DatasetArtifact, ModelArtifact
from harmonia.client.recipe import RecipeContext, recipe_main

from .config import Config


@recipe_main
async def teach(ctx: RecipeContext, config: Config):
    ctx.job.register_stages([naming.STAGE])
    stage = ctx.job.stage_notifier(naming.STAGE)
    threads = await config.dataset.load(ctx)
    rows = DatasetArtifact("rows", ctx)
    rows.add_samples_from_thread(threads)
    notes = CustomArtifact("notes", ctx, file="notes.txt")
    builder = await config.model.to_builder(ctx, kv_cache_len=256)
    model = await builder.with_adapter(rank=2).spawn_train(naming.INSTANCE, 256)
    for step in range(config.steps):
        if step == config.fail_at:
            raise RuntimeError(f"no step {step}")
        if step == config.wait_at:
            await asyncio.sleep(600)
        await asyncio.gather(*(model.train_language_modelling(thread) for thread in threads))
        logs = await model.optim_step(1e-2, 0.0, 1.0, False)
        stage.report_metrics(logs)
        stage.report_progress(config.steps * len(threads), (step + 1) * len(threads))
        notes.append(f"step {step} is done\\n")
    key = await model.save(config.output)
    ModelArtifact(key, ctx)
    return logs["loss"]
"""


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
def recipe(tmp_path: Path) -> Path:
    """A folder with a recipe, its config, and a module beside them."""
    folder = tmp_path / "teach"
    folder.mkdir()
    naming = 'STAGE, INSTANCE = "teaching", "pupil"\n'
    for name, text in {"main.py": MAIN, "config.py": CONFIG, "naming.py": naming}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    row = {
        "messages": [{"role": "user", "content": "What is blue?"}, {"role": "assistant", "content": "The sky."}],
    }
    file.write_text((json.dumps(row) + "\n") * 3, encoding="utf-8")
    return str(file)


async def run(address: str, recipe: Path, job: JournalJobNotifier, **given: object) -> object:
    """The recipe from start to end, as `harmonia run` does it."""
    config = RecipeConfig(harmony_url=address, working_dir=str(job.folder / "work"))
    async with RecipeContext.from_config(config, job=job) as ctx:
        return await run_recipe(ctx, load_recipe(recipe), given)


async def test_what_a_recipe_makes(address: str, registry: Path, recipe: Path, rows: str, tmp_path: Path) -> None:
    job = JournalJobNotifier(tmp_path / "job", "j1")
    last = await run(address, recipe, job, model="tiny", dataset=rows, steps=4)
    state = read_journal(job.folder)
    assert (state.state, state.config["model"], state.config["steps"]) == ("COMPLETED", "tiny", 4)
    assert (state.stage("teaching").processed, state.stage("teaching").total) == (12, 12)
    losses = [record.metrics["loss"] for record in read_metrics(job.folder)]
    assert len(losses) == 4 and losses[-1] == last < losses[0]
    made = {artifact.name: artifact for artifact in state.artifacts}
    assert made["taught"].metadata["model_key"] == "taught" and (registry / "taught").is_dir()
    assert made["notes"].file and (job.folder / made["notes"].file).read_text(encoding="utf-8").endswith("3 is done\n")
    assert made["rows"].file
    # What a job makes, another takes: its data set, and its model.
    again = JournalJobNotifier(tmp_path / "again", "j2")
    made_rows = str(job.folder / made["rows"].file)
    await run(address, recipe, again, model="taught", dataset=made_rows, output="taught-more", steps=1)
    assert read_metrics(again.folder)[0].metrics["loss"] < losses[0]


async def test_nothing_is_loaded_for_a_config_that_cannot_work(
    address: str, recipe: Path, tmp_path: Path, rows: str
) -> None:
    job = JournalJobNotifier(tmp_path / "job", "j1")
    with pytest.raises(InvalidRequestError) as caught:
        await run(address, recipe, job, model="tinny", dataset="none.jsonl")
    model, dataset = caught.value.message.splitlines()
    assert model.startswith("model: ") and "'tinny'" in model and "tiny" in model.replace("tinny", "")
    assert dataset.startswith("dataset: ") and "none.jsonl" in dataset
    state = read_journal(job.folder)
    assert state.state == "FAILED" and state.stages == () and state.error and "model: " in state.error.traceback
    with pytest.raises(InvalidRequestError, match=r"steps: .*got 'many'"):
        await run(address, recipe, job, model="tiny", dataset=rows, steps="many")


async def test_a_recipe_that_raises_leaves_the_worker_as_it_was(
    address: str, recipe: Path, rows: str, tmp_path: Path, registry: Path
) -> None:
    job = JournalJobNotifier(tmp_path / "job", "j1")
    with pytest.raises(RuntimeError, match="no step 1"):
        await run(address, recipe, job, model="tiny", dataset=rows, output="half", fail_at=1)
    state = read_journal(job.folder)
    assert state.state == "FAILED" and state.error and state.error.message == "RuntimeError: no step 1"
    lines = state.error.traceback.splitlines()
    assert [line.strip().partition(",")[0] for line in lines if line.startswith("  File")][-1].endswith(
        'teach/main.py"'
    )
    assert not any("harmonia/client" in line for line in lines)
    notes = next(artifact for artifact in state.artifacts if artifact.name == "notes")
    assert notes.file and (job.folder / notes.file).read_text(encoding="utf-8") == "step 0 is done\n"
    assert len(read_metrics(job.folder)) == 1 and not (registry / "half").exists()
    # The name of its instance is free again at once.
    await run(address, recipe, JournalJobNotifier(tmp_path / "next", "j2"), model="tiny", dataset=rows, steps=1)


async def test_a_canceled_recipe_saves_nothing_half(
    address: str, recipe: Path, rows: str, tmp_path: Path, registry: Path
) -> None:
    done = asyncio.Event()
    job = JournalJobNotifier(
        tmp_path / "job", "j1", lambda state: done.set() if state.stage("teaching").processed else None
    )
    given = {"model": "tiny", "dataset": rows, "output": "canceled", "wait_at": 1}
    task = asyncio.create_task(run(address, recipe, job, **given))
    await asyncio.wait({task, asyncio.create_task(done.wait())}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    state = read_journal(job.folder)
    assert (state.state, state.error) == ("CANCELED", None)
    assert (state.stage("teaching").processed, state.stage("teaching").total) == (3, 6)
    assert {artifact.name for artifact in state.artifacts} == {"rows", "notes"}
    assert not (registry / "canceled").exists()
    await run(address, recipe, JournalJobNotifier(tmp_path / "next", "j2"), model="tiny", dataset=rows, steps=1)
