"""Supervised fine-tuning on a real worker."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from harmonia.client import HarmonyClient, StringThread, TrainingModel
from harmonia.errors import InvalidRequestError, SequenceTooLongError
from harmonia.trainers import SFT, CosineScheduler, RecipeCallback, ValidationLossCallback
from harmonia.trainers.checkpointing import CheckpointManager
from tests.unit.trainers.recorders import TOO_LONG, Records, Stage, lessons


async def test_losses_fall_and_the_model_says_what_it_learned(
    policy: TrainingModel, records: Records, stage: Stage
) -> None:
    threads = lessons(4)
    before = await policy.logprobs(threads[0])
    await SFT(threads, policy, records, stage, lr=0.02, samples_per_batch=4, epochs=8).run()
    losses = records.column("loss")
    assert losses[-1] < losses[0] / 2
    assert await policy.logprobs(threads[0]) > before


async def test_each_record_is_one_step_at_the_rate_of_the_schedule(
    policy: TrainingModel, records: Records, stage: Stage
) -> None:
    trainer = SFT(lessons(10), policy, records, stage, lr=1e-3, samples_per_batch=4)
    assert trainer.training_completion_percentage == 0
    await trainer.run()
    assert trainer.training_completion_percentage == 1
    assert records.column("completion_percentage") == [0.4, 0.8, 1.0]
    assert records.column("lr") == pytest.approx([CosineScheduler(1e-3)(share) for share in (0.4, 0.8, 1.0)])
    assert records.column("num_samples") == [4, 4, 2]
    assert policy.get_optim_step() == 3
    assert stage.progress == [(0, 10), (4, 10), (8, 10), (10, 10)]
    assert records.column("num_dropped_samples") == [0, 0, 0]
    assert stage.metrics == []


async def test_several_epochs_fill_every_batch(policy: TrainingModel, records: Records, stage: Stage) -> None:
    await SFT(lessons(5), policy, records, stage, samples_per_batch=4, epochs=3).run()
    assert records.column("num_samples") == [4] * 4
    assert records.column("completion_percentage") == pytest.approx([4 / 15, 8 / 15, 12 / 15, 16 / 15])
    assert stage.progress[-1] == (15, 15)


async def test_a_part_of_an_epoch(policy: TrainingModel, records: Records, stage: Stage) -> None:
    await SFT(lessons(8), policy, records, stage, samples_per_batch=2, epochs=0.5).run()
    assert records.column("completion_percentage") == [0.5, 1.0]


async def test_the_first_step_is_the_one_made_by_hand(
    client: HarmonyClient, policy: TrainingModel, records: Records, stage: Stage, tiny: Path
) -> None:
    threads = lessons(3)
    await SFT(threads, policy, records, stage, lr=1e-3, lr_scheduler=lambda _: 5e-3, weight_decay=0.1).run()
    other = await client.model(str(tiny)).with_adapter(rank=4).spawn_train("other", 160)
    await asyncio.gather(*map(other.train_language_modelling, threads))
    by_hand = await other.optim_step(5e-3, 0.1, 1.0, False)
    assert records.records[0] == pytest.approx(records.records[0] | by_hand, rel=1e-4)


async def test_tangents_train_the_same_and_log_more(policy: TrainingModel, records: Records, stage: Stage) -> None:
    built_in = Records()
    await SFT(lessons(3), policy, built_in, stage, lr_scheduler=lambda _: 0.0, epochs=2).run()
    await SFT(lessons(3), policy, records, stage, lr_scheduler=lambda _: 0.0, use_tangents=True).run()
    assert records.column("loss") == pytest.approx(built_in.column("loss")[:1], rel=1e-4)
    (logs,) = records.records
    assert logs["policy/num_tokens"] == logs["num_tokens"]
    assert logs["policy/loss"] == pytest.approx(logs["loss"] * 3 / logs["num_tokens"], rel=1e-4)


async def test_callbacks_see_the_model_before_and_after(policy: TrainingModel, records: Records, stage: Stage) -> None:
    held_out = lessons(2)
    watch = ValidationLossCallback(held_out, policy, frequency=0.5)
    await SFT(lessons(8), policy, records, stage, [watch], lr=0.02, samples_per_batch=2).run()
    assert [record["completion_percentage"] for record in records.records if "validation/loss" in record] == [0, 0.5, 1]
    assert records.column("validation/loss")[-1] < records.column("validation/loss")[0]
    assert records.records[0].keys() >= {"validation/loss"} and "loss" not in records.records[0]


# -------------------------------------------------------------------------------------------------- what is left out


async def test_threads_that_are_too_long_are_replaced_counted_and_reported(
    policy: TrainingModel, records: Records, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    threads = [*lessons(4), TOO_LONG, *lessons(4)]
    await SFT(threads, policy, records, stage, samples_per_batch=4).run()
    assert sum(records.column("num_samples")) == 8
    assert records.column("num_samples")[0] == 4
    assert records.column("num_dropped_samples")[-1] == 1
    assert stage.metrics == [{"num_dropped_samples": 1}]
    assert "Lessons: 1 samples were dropped and 8 trained; the first one because of SequenceTooLongError" in caplog.text


async def test_a_last_batch_of_which_nothing_can_be_trained_makes_no_step(
    policy: TrainingModel, records: Records, stage: Stage
) -> None:
    count = 5
    last = SFT(lessons(count), policy, data_seed=1)._loop.dataset.access_indices[-1]
    threads = lessons(count)
    threads[last] = TOO_LONG
    await SFT(threads, policy, records, stage, samples_per_batch=4, data_seed=1).run()
    assert policy.get_optim_step() == 1
    assert records.column("completion_percentage") == [0.8, 1.0]
    assert records.column("num_dropped_samples") == [0, 1]


@pytest.mark.parametrize("count", [3, 30])
async def test_when_no_thread_can_be_trained_it_ends(
    policy: TrainingModel, records: Records, stage: Stage, count: int
) -> None:
    with pytest.raises(RuntimeError, match=r"Batch processing failed: .*SequenceTooLongError") as caught:
        await SFT([TOO_LONG] * count, policy, records, stage, samples_per_batch=8).run()
    assert isinstance(caught.value.__cause__, SequenceTooLongError)
    assert policy.get_optim_step() == 0


async def test_a_model_that_is_gone_ends_it_whatever_was_trained_before(
    policy: TrainingModel, records: Records, stage: Stage
) -> None:
    class Freeing(RecipeCallback):
        """Frees the model after the first step."""

        async def callback(self, current_percentage: float) -> dict[str, Any]:
            if current_percentage > 0:
                await policy.dealloc()
            return {}

    with pytest.raises(RuntimeError, match="Batch processing failed"):
        await SFT(lessons(3), policy, records, stage, [Freeing(0.5)], samples_per_batch=2).run()
    assert len(records.records) == 1


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dataset": []}, "the data set is empty"),
        ({"dataset": [*lessons(1), StringThread([])]}, "sample 1 is a thread without turns"),
        ({"dataset": [StringThread.from_json(lessons(1)[0].to_json().replace("1.0", "0.0"))]}, "sample 0 has no turn"),
        ({"dataset": ["hello"]}, "sample 0 is a str; give a StringThread"),
        ({"epochs": 0}, "epochs must be more than 0, got 0"),
        ({"epochs": math.nan}, "epochs must be more than 0, got nan"),
        ({"samples_per_batch": 0}, "samples_per_batch must be at least 1, got 0"),
        ({"checkpoint_frequency": 0}, "checkpoint_frequency"),
    ],
)
async def test_what_cannot_be_trained_is_refused_at_once(
    policy: TrainingModel, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        SFT(**{"dataset": lessons(2), "model": policy, "logger": Records()} | arguments)


async def test_unusual_weights_are_pointed_out(policy: TrainingModel, caplog: pytest.LogCaptureFixture) -> None:
    talk = StringThread([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")])
    SFT([*lessons(2), StringThread([("user", "a")]), talk, StringThread().system("s")], policy, Records())
    assert "1 of 5 threads train user turns" in caplog.text
    assert "1 of 5 threads train system turns" in caplog.text
    assert "1 of 5 threads have assistant turns of weight 0" in caplog.text
    caplog.clear()
    SFT([talk.with_weight_all_assistant_turns()], policy, Records())
    assert not caplog.text


# ------------------------------------------------------------------------------------------------------ conventions


async def test_arguments_may_be_given_by_position_and_are_logged(
    policy: TrainingModel, records: Records, stage: Stage
) -> None:
    trainer = SFT(lessons(2), policy, records, stage, [], 1e-4, None, 2, 0.5, 3, 0.1, True, None, 0.5, 7, True)
    assert (trainer.samples_per_batch, trainer.max_grad_norm, trainer.epochs, trainer.data_seed) == (2, 0.5, 3, 7)
    assert records.config["lr"] == 1e-4
    assert records.config["model"]["path"] == policy.get_builder_args()["path"]


async def test_each_trainer_has_a_logger_and_a_stage_of_its_own(policy: TrainingModel) -> None:
    first, second = SFT(lessons(1), policy), SFT(lessons(1), policy)
    assert first.logger is not second.logger
    assert first.stage_notifier is not second.stage_notifier
    assert first.stage_notifier.stage_name == "SFT Training"
    assert (first.lr, first.samples_per_batch, first.epochs, first.weight_decay) == (1e-5, 512, 1, 0)


# ------------------------------------------------------------------------------------------------------ checkpoints


async def test_a_resumed_training_ends_where_an_uninterrupted_one_does(
    client: HarmonyClient, policy: TrainingModel, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HARMONY_NO_CHECKPOINTING")
    monkeypatch.setenv("RECIPE_CHECKPOINTS_DIR", str(tmp_path))
    settings: dict[str, Any] = {"lr": 0.01, "samples_per_batch": 2, "epochs": 2, "checkpoint_frequency": 0.25}
    CheckpointManager.reset_stage_counter()
    whole, resumed = Records(), Records()
    await SFT(lessons(6), policy, whole, Stage(), **settings).run()

    checkpoint = json.loads((tmp_path / "local" / "stage_0" / "checkpoint-33.json").read_text())
    CheckpointManager.reset_stage_counter()
    other = await client.model(str(tiny)).with_adapter(rank=4).spawn_train("other", 160)
    await SFT(lessons(6), other, resumed, Stage(), **settings, checkpoint_restore_data=checkpoint).run()
    assert len(whole.records) == 6
    assert resumed.column("loss") == pytest.approx(whole.column("loss")[2:], rel=1e-3)
    assert resumed.column("lr") == whole.column("lr")[2:]
    assert other.get_optim_step() == policy.get_optim_step()
