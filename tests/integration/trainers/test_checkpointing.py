"""Saving and restoring where a training stands; tests/integration/test_resume_training.py does it with models."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harmonia.client import StringThread, TrainingModel
from harmonia.client.recipe.stdout import StdoutJobNotifier
from harmonia.errors import InvalidRequestError
from harmonia.trainers.callbacks import RecipeCallback
from harmonia.trainers.checkpointing import BaseCheckpointData, CheckpointManager, SFTCheckpointData
from harmonia.trainers.dataset import DataSet
from harmonia.trainers.metric_loggers import StdoutLogger
from tests.unit.trainers.recorders import lessons


class Job(StdoutJobNotifier):
    """A job that keeps its checkpoints."""

    def __init__(self, job_id: str = "job") -> None:
        super().__init__(job_id)
        self.checkpoints: list[dict[str, Any]] = []

    def report_checkpoint(self, *args: Any, **told: Any) -> None:
        self.checkpoints.append(told)

    @property
    def last(self) -> dict[str, Any]:
        """What a resumed run gets."""
        data: dict[str, Any] = json.loads(self.checkpoints[-1]["user_data"]["checkpoint_json"])
        return data


class Quiet(RecipeCallback):
    """Runs and logs nothing."""

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        return {}


@dataclass
class Training:
    """What a trainer has and asks of its manager; its model is a number."""

    job: Job
    threads: list[StringThread] = field(default_factory=lambda: lessons(10))
    stage: str = "Lessons"
    recipe: str = "SFT"
    hyperparams_hash: str = "0" * 16
    restore: dict[str, Any] | None = None
    callbacks: tuple[RecipeCallback, ...] = ()
    frequency: float = 0.2
    weight: int = 0

    def __post_init__(self) -> None:
        self.dataset = DataSet(self.threads, allow_looping=True)
        self.logger = StdoutLogger()
        self.manager = CheckpointManager(
            self.recipe,
            self.dataset,
            self.threads,
            self.callbacks,
            self.hyperparams_hash,
            self.job.stage_notifier(self.stage),
            SFTCheckpointData,
            self.frequency,
            self.restore,
            self.logger,
        )

    async def step(self) -> bool:
        """Take one sample; whether to stop."""
        next(self.dataset)
        self.weight += 1
        for callback in self.callbacks:
            await callback.maybe_call(self.dataset.completion_percentage())
        return await self.manager.maybe_checkpoint(self.dataset.completion_percentage(), self._save)

    async def _save(self) -> dict[str, Any]:
        name = self.manager.model_name(self.dataset.completion_percentage())
        return {"model_checkpoint_name": name, "optim_step": self.weight}

    async def resume(self) -> None:
        await self.manager.restore_checkpoint_data(self._load)

    async def _load(self, data: SFTCheckpointData) -> None:
        self.weight = data.optim_step


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.delenv("HARMONY_NO_CHECKPOINTING", raising=False)
    monkeypatch.setenv("RECIPE_CHECKPOINTS_DIR", str(tmp_path))
    CheckpointManager.reset_stage_counter()
    yield tmp_path
    CheckpointManager.reset_stage_counter()


async def run(training: Training, steps: int = 10) -> Training:
    for _ in range(steps):
        if await training.step():
            break
    return training


# ------------------------------------------------------------------------------------------------------- saving


async def test_every_fifth_of_the_training_but_not_at_its_end(folder: Path) -> None:
    training = await run(Training(Job()))
    told = training.job.checkpoints
    assert [checkpoint["step"] for checkpoint in told] == [2, 4, 6, 8]
    assert [checkpoint["completion_percentage"] for checkpoint in told] == pytest.approx([20, 40, 60, 80])
    files = sorted(file.name for file in (folder / "job" / "stage_0").iterdir())
    assert files == [f"checkpoint-{percent}.json" for percent in (20, 40, 60, 80)]
    assert json.loads((folder / "job" / "stage_0" / "checkpoint-80.json").read_text()) == training.job.last


async def test_what_a_checkpoint_says() -> None:
    training = await run(Training(Job(), callbacks=(Quiet(0.1),)), 2)
    (told,) = training.job.checkpoints
    assert told["stage_name"] == "Lessons" and told["model_checkpoint_names"] == {} and len(told["checkpoint_id"]) == 36
    assert training.job.last["active_stage"] == "Lessons" and training.job.last["completed_stages"] == []
    data = training.job.last["data"]
    assert data.pop("dataset_hash") and data.pop("dataset_rng_state")["bit_generator"] == "PCG64"
    assert data == {
        "recipe_type": "SFT",
        "hyperparams_hash": "0" * 16,
        "dataset_idx": 2,
        "dataset_access_indices": training.dataset.access_indices,
        "callback_last_calls": [0.2],
        "completion_percentage": 0.2,
        "logger_state": {"step": 0},
        "model_checkpoint_name": "checkpoints/job/checkpoint-20",
        "optim_step": 2,
    }


async def test_the_job_hears_of_models_by_their_keys(policy: TrainingModel) -> None:
    training = Training(Job())
    training.manager.register_model(policy, "model_checkpoint_name")
    await run(training, 2)
    path = policy.get_builder_args()["path"]
    assert training.job.checkpoints[0]["model_checkpoint_names"] == {path: "checkpoints/job/checkpoint-20"}


async def test_a_file_asks_for_a_checkpoint_and_an_end(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = await run(Training(Job()), 3)
    (folder / "job" / "stage_0" / "GRACEFUL_EXIT").touch()
    with caplog.at_level(logging.WARNING, "harmonia"):
        await run(training)
    assert training.weight == 4 and training.job.last["data"]["dataset_idx"] == 4
    assert "stops at 40 %" in caplog.text
    assert not (folder / "job" / "stage_0" / "GRACEFUL_EXIT").exists(), "the resumed run goes on"


@pytest.mark.parametrize("off", ["variable", "job"])
async def test_no_checkpoints(monkeypatch: pytest.MonkeyPatch, folder: Path, off: str) -> None:
    job = Job()
    if off == "variable":
        monkeypatch.setenv("HARMONY_NO_CHECKPOINTING", "1")
    else:
        job.job_id = None  # type: ignore[assignment]
    training = await run(Training(job))
    assert not training.manager.is_enabled() and job.checkpoints == [] and list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("RECIPE_CHECKPOINTS_DIR", str(folder / "file"))
    with pytest.raises(InvalidRequestError, match="set RECIPE_CHECKPOINTS_DIR to a folder that can be written"):
        Training(Job())


@pytest.mark.parametrize("frequency", [0, -1.0, float("nan")])
def test_a_frequency_that_is_none(frequency: float) -> None:
    with pytest.raises(InvalidRequestError, match="checkpoint_frequency must be more than 0"):
        Training(Job(), frequency=frequency)


def test_stages_of_a_run_have_numbers(folder: Path) -> None:
    job = Job()
    first, second = Training(job), Training(job, stage="More")
    assert (first.manager.stage_suffix, second.manager.stage_suffix) == ("", "-stage1")
    assert second.manager.model_name(0.4, "policy") == "checkpoints/job/checkpoint-40-stage1-policy"
    assert second.manager.folder == folder / "job" / "stage_1"
    assert Training(Job("other")).manager.stage_suffix == "", "another job has its own"
    assert Training(job, stage="Even more").manager.stage_suffix == "-stage2"
    CheckpointManager.reset_stage_counter()
    assert Training(job).manager.stage_suffix == ""


# ----------------------------------------------------------------------------------------------------- restoring


async def test_a_resumed_training_goes_on_as_if_nothing_had_happened() -> None:
    whole = await run(Training(Job(), callbacks=(Quiet(0.3),)), 15)
    stopped = await run(Training(Job(), callbacks=(Quiet(0.3),)), 6)
    assert stopped.job.last["data"]["dataset_idx"] == 6
    stopped.logger.set_state({"step": 6})
    resumed = Training(Job(), callbacks=(Quiet(0.3),), restore=stopped.job.last)
    await resumed.resume()
    assert resumed.weight == resumed.dataset.idx == 6
    assert resumed.callbacks[0].last_call == pytest.approx(stopped.callbacks[0].last_call) == 0.6
    await run(resumed, 9)
    assert resumed.dataset.access_indices == whole.dataset.access_indices, "into the next epoch"
    assert [c["step"] for c in resumed.job.checkpoints] == [8], "the next fifth"


async def test_the_same_threads_that_were_trained_on_may_be_resumed_with() -> None:
    threads = [StringThread([("user", str(number))], metadata={"id": number}) for number in range(10)]
    stopped = await run(Training(Job(), threads=threads), 4)
    assert "sample_index" in threads[stopped.dataset.access_indices[0]].metadata
    resumed = Training(Job(), threads=threads, restore=stopped.job.last)
    await resumed.resume()
    assert resumed.weight == 4


async def test_curves_go_on() -> None:
    first = Training(Job())
    first.logger({"loss": 1.0})
    await run(first, 2)
    resumed = Training(Job(), restore=first.job.last)
    await resumed.resume()
    assert resumed.logger.get_state() == {"step": 1}


async def test_other_callbacks_start_anew(caplog: pytest.LogCaptureFixture) -> None:
    stopped = await run(Training(Job(), callbacks=(Quiet(0.1),)), 2)
    resumed = Training(Job(), callbacks=(Quiet(0.1), Quiet(0.2)), restore=stopped.job.last)
    with caplog.at_level(logging.WARNING, "harmonia"):
        await resumed.resume()
    assert "2 callbacks now and 1" in caplog.text and resumed.callbacks[0].last_call == -1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": "GRPO"}, r"the trainer \(SFT then, GRPO now\)"),
        ({"threads": lessons(11)}, r"the data set \(\w{16} then, \w{16} now\)"),
        ({"hyperparams_hash": "1" * 16}, r"the hyperparameters \(0{16} then, 1{16} now\)"),
        ({"stage": "Other"}, "the checkpoint is of stage 'Lessons', and this job has 'Other'"),
        ({"recipe": "GRPO", "threads": lessons(3)}, "the trainer .*, the data set .* differ; resume with the recipe"),
    ],
)
async def test_a_checkpoint_of_another_training_names_what_differs(change: Mapping[str, Any], says: str) -> None:
    stopped = await run(Training(Job()), 2)
    resumed = Training(Job(), restore=stopped.job.last, **change)
    with pytest.raises(InvalidRequestError, match=says):
        await resumed.resume()
    assert resumed.weight == 0 and resumed.dataset.idx == 0


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({}, "active_stage: Field required"),
        ({"active_stage": "Lessons", "data": 3}, "data: Input should be a valid dictionary"),
        ({"active_stage": "Lessons", "data": {"recipe_type": "SFT"}}, "dataset_hash: Field required"),
        ([], "Input should be a valid dictionary"),
    ],
)
async def test_a_broken_checkpoint_names_what_is_missing(broken: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"checkpoint_restore_data is no checkpoint .*{says}"):
        await Training(Job(), restore=broken).resume()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset_rng_state", {"bit_generator": "MT19937"}),
        ("dataset_rng_state", None),
        ("dataset_idx", 11),
        ("dataset_idx", -1),
        ("dataset_access_indices", [0, 1, 10]),
    ],
)
async def test_an_order_that_cannot_be_is_told(field: str, value: Any) -> None:
    restore = (await run(Training(Job()), 2)).job.last
    restore["data"][field] = value
    resumed = Training(Job(), restore=restore)
    with pytest.raises(InvalidRequestError, match=f"no checkpoint that can be resumed: data.{field}"):
        await resumed.resume()
    assert resumed.weight == 0 and resumed.dataset.idx == 0


# -------------------------------------------------------------------------------------------------- several stages


async def test_stages_that_were_done_are_skipped_and_later_ones_run() -> None:
    job = Job()
    job.register_stages(["Warm up", "Lessons", "Exam"])
    await run(Training(job, stage="Warm up"))
    await run(Training(job), 4)
    again = Job()
    again.register_stages(["Warm up", "Lessons", "Exam"])
    stages = [Training(again, stage=name, restore=job.last) for name in again.stages]
    assert job.last["completed_stages"] == ["Warm up"]
    assert [stage.manager.should_skip() for stage in stages] == [True, False, False]
    await stages[1].resume()
    await stages[2].resume()
    assert [stage.weight for stage in stages] == [0, 4, 0]


async def test_stages_that_nobody_registered_are_known_in_their_order() -> None:
    job = Job()
    await run(Training(job, stage="Warm up"))
    await run(Training(job), 2)
    assert job.last["completed_stages"] == ["Warm up"]
    restore = job.last
    first, second = Training(Job(), stage="Warm up", restore=restore), Training(Job(), restore=restore)
    assert first.manager.should_skip() and not second.manager.should_skip()


async def test_two_stages_of_one_name_are_told_apart() -> None:
    job = Job()
    await run(Training(job))
    await run(Training(job), 2)
    assert (job.last["active_stage"], job.last["completed_stages"]) == ("Lessons-stage1", ["Lessons"])
    restore = job.last
    first, second = Training(Job(), restore=restore), Training(Job(), restore=restore)
    assert first.manager.should_skip() and not second.manager.should_skip()
    await second.resume()
    assert second.weight == 2


async def test_a_cell_of_a_notebook_may_run_again() -> None:
    job = Job()
    await run(Training(job), 1)
    await run(Training(job), 2)  # the first one was interrupted
    assert (job.last["active_stage"], job.last["completed_stages"]) == ("Lessons-stage1", [])
    restore = job.last
    for _ in range(2):
        resumed = Training(job, restore=restore)
        assert not resumed.manager.should_skip()
        await resumed.resume()
        assert resumed.weight == 2
    await run(resumed)
    after = Training(job, restore=restore)
    await after.resume()
    assert after.weight == 0, "the stage was finished: this is another one of that name"


async def test_without_restore_data_nothing_is_skipped_or_restored() -> None:
    training = Training(Job())
    assert not training.manager.should_skip()
    await training.resume()
    assert training.weight == 0


def test_data_of_ones_own() -> None:
    class MyData(BaseCheckpointData):
        rounds: int = 0

    training = Training(Job())
    kept = CheckpointManager(
        recipe_name="MINE",
        dataset=training.dataset,
        threads_dataset=training.threads,
        callbacks=[],
        hyperparams_hash="",
        stage_notifier=training.job.stage_notifier("Mine"),
        checkpoint_data_cls=MyData,
    )
    assert kept.checkpoint_data_cls is MyData and kept.is_enabled()
