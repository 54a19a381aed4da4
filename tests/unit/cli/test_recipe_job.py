"""The journal of a run: which checkpoints stay in the registry, and from when on a resumed job's input counts."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harmonia.cli.job_end import next_commands
from harmonia.cli.live import Display
from harmonia.cli.recipe_job import Journal, Order
from harmonia.client.recipe import JobState, read_journal
from harmonia.client.recipe.journal_state import ArtifactState
from harmonia.config import WorkerConfig
from harmonia.models.registry import ModelRegistry


def order(folder: Path, **changes: Any) -> Order:
    """A job `one` whose worker keeps models in `folder/registry`."""
    worker = WorkerConfig(registry=str(folder / "registry"))
    base = {"name": "sft", "path": folder, "job_id": "one", "folder": folder / "one", "worker": worker}
    return Order(**base | changes)


def journal(asked: Order) -> Journal:
    return Journal(asked, Display(Console(file=io.StringIO()), "sft"))


def checkpoint(journal: Journal, registry: ModelRegistry, key: str) -> None:
    """Save a model under this key and report it."""
    registry.path_for(key).mkdir(parents=True)
    journal.report_checkpoint(key, 1, 50.0, {"base": key}, {"checkpoint_json": "{}"}, "Training")


def test_only_the_newest_checkpoint_stays_and_none_when_the_job_is_done(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "registry")
    registry.path_for("kept").mkdir(parents=True)
    with journal(order(tmp_path)) as job:
        checkpoint(job, registry, "mine/best")
        checkpoint(job, registry, "checkpoints/one/checkpoint-20")
        checkpoint(job, registry, "checkpoints/one/checkpoint-40")
        assert registry.keys() == ["checkpoints/one/checkpoint-40", "kept", "mine/best"]
        registry.path_for("checkpoints/one/for-a-while").mkdir()
        registry.path_for("checkpoints/other/checkpoint-20").mkdir()
        job.complete()
    registry.remove("checkpoints/other/checkpoint-20")
    assert registry.keys() == ["kept", "mine/best"]


def test_a_job_that_was_canceled_keeps_its_checkpoint(tmp_path: Path) -> None:
    registry, asked = ModelRegistry(tmp_path / "registry"), order(tmp_path)
    job = journal(asked)
    checkpoint(job, registry, "checkpoints/one/checkpoint-20")
    job.mark_canceled()
    job.close()
    assert registry.keys() == ["checkpoints/one/checkpoint-20"]
    ((_, command),) = next_commands(asked, job.state)
    assert command == f"harmonia run --registry {tmp_path / 'registry'} --resume {tmp_path / 'one'}"


def test_what_no_checkpoint_names_goes_when_a_job_ends(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "registry")
    job = journal(order(tmp_path))
    for key in ("mine", "checkpoints/one/untrained", "checkpoints/other/checkpoint-20"):
        registry.path_for(key).mkdir(parents=True)
    checkpoint(job, registry, "checkpoints/one/checkpoint-20")
    job.mark_canceled()
    job.sweep()
    job.close()
    assert registry.keys() == ["checkpoints/one/checkpoint-20", "checkpoints/other/checkpoint-20", "mine"]


def test_the_registry_of_another_worker_is_left_alone(tmp_path: Path) -> None:
    registry, asked = ModelRegistry(tmp_path / "registry"), order(tmp_path, address="ws://127.0.0.1:9100")
    keys = ["checkpoints/one/checkpoint-20", "checkpoints/one/checkpoint-40"]
    with journal(asked) as job:
        for key in keys:
            checkpoint(job, registry, key)
        job.complete()
        job.sweep()
    assert registry.keys() == keys and not list(next_commands(asked, job.state))


@pytest.mark.parametrize(("goes_on", "stored"), [(False, 1), (True, 2)])
def test_the_input_of_a_resumed_job_counts_once_it_has_gone_on(tmp_path: Path, goes_on: bool, stored: int) -> None:
    first = journal(order(tmp_path))
    first.describe("sft", {"epochs": 1})
    first.mark_canceled()
    resumed = journal(order(tmp_path, resumed=first.state))
    resumed.describe("sft", {"epochs": 2})
    if goes_on:
        resumed.step("model", {"loss": 1.0})
    resumed.report_error("data set differ")
    assert read_journal(tmp_path / "one").config == {"epochs": stored}


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ('{"kind": "model"}', "serve model_registry://a/b --registry {registry}"),
        (
            '{"kind": "adapter", "base": "model_registry://base"}',
            "serve {registry}/base --adapter b=model_registry://a/b --",
        ),
        ('{"kind": "model", "scalar_head": true}', ""),
        ('{"kind": "adapter", "base": "/gone"}', ""),
    ],
)
def test_how_to_serve_what_was_saved(tmp_path: Path, info: str, says: str) -> None:
    registry = ModelRegistry(tmp_path / "registry")
    for key in ("base", "a/b"):
        registry.path_for(key).mkdir(parents=True)
    (registry.path_for("a/b") / "adaptive_info.json").write_text(info)
    saved = ArtifactState(id="1", name="a/b", kind="model")
    state = JobState(job_id="one", state="COMPLETED", artifacts=(saved,))
    commands = [command for _, command in next_commands(order(tmp_path), state)]
    assert len(commands) == bool(says)
    assert all(says.format(registry=tmp_path / "registry") in command for command in commands)
