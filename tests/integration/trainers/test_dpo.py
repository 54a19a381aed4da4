"""Preferences on a real worker."""

import math
from typing import Any

import pytest

from harmonia.client import StringThread, TrainingModel
from harmonia.errors import InvalidRequestError
from harmonia.trainers import DPO, CosineScheduler
from tests.unit.trainers.recorders import TOO_LONG, Records, Stage


def preferences(count: int) -> list[tuple[StringThread, StringThread]]:
    """Pairs that are easy to learn together."""
    asked = [StringThread([("user", f"Word {number}?")]) for number in range(count)]
    return [(ask.assistant("Yes."), ask.assistant("No!!")) for ask in asked]


@pytest.mark.parametrize("use_tangents", [False, True])
async def test_the_preferred_side_becomes_likelier(
    policy: TrainingModel, records: Records, stage: Stage, use_tangents: bool
) -> None:
    pairs = preferences(4)
    margin = await policy.logprobs(pairs[0][0]) - await policy.logprobs(pairs[0][1])
    trainer = DPO(pairs, policy, records, stage, lr=0.01, samples_per_batch=4, epochs=6, use_tangents=use_tangents)
    await trainer.run()
    key = "policy/loss" if use_tangents else "loss"
    losses = records.column(key)
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3)
    assert losses[-1] < 0.8 * losses[0]
    assert await policy.logprobs(pairs[0][0]) - await policy.logprobs(pairs[0][1]) > margin + 1
    if use_tangents:
        assert records.column("policy/reward_accuracy")[-1] == 1
        assert records.column("policy/reward_margin")[-1] > 0


async def test_steps_and_rates(policy: TrainingModel, records: Records, stage: Stage) -> None:
    await DPO(preferences(5), policy, records, stage, lr=1e-3, samples_per_batch=2).run()
    assert records.column("num_samples") == [2, 2, 1]
    assert records.column("lr") == pytest.approx([CosineScheduler(1e-3)(share) for share in (0.4, 0.8, 1.0)])
    assert stage.progress == [(0, 5), (2, 5), (4, 5), (5, 5)]


async def test_a_part_of_an_epoch_and_several(policy: TrainingModel, records: Records, stage: Stage) -> None:
    await DPO(preferences(4), policy, records, stage, samples_per_batch=2, epochs=0.5).run()
    assert records.column("completion_percentage") == [1.0]
    more = Records()
    await DPO(preferences(3), policy, more, stage, samples_per_batch=2, epochs=2).run()
    assert more.column("num_samples") == [2, 2, 2]


async def test_the_frozen_copy_is_freed(policy: TrainingModel, stage: Stage) -> None:
    trainer = DPO(preferences(2), policy, Records(), stage)
    await trainer.run()
    assert trainer._reference is None
    with pytest.raises(InvalidRequestError, match="inside run"):
        await trainer.process_sample(preferences(1)[0])


async def test_pairs_that_are_too_long_are_counted(policy: TrainingModel, records: Records, stage: Stage) -> None:
    pairs = [*preferences(4), (TOO_LONG, preferences(1)[0][1])]
    await DPO(pairs, policy, records, stage, samples_per_batch=2).run()
    assert sum(records.column("num_samples")) == 4
    assert stage.metrics == [{"num_dropped_samples": 1}]


async def test_when_no_pair_can_be_trained_it_ends(policy: TrainingModel, stage: Stage) -> None:
    with pytest.raises(RuntimeError, match=r"Batch processing failed: .*SequenceTooLongError"):
        await DPO([(TOO_LONG, TOO_LONG)] * 3, policy, Records(), stage).run()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dataset": []}, "the data set is empty"),
        ({"dataset": [preferences(1)[0][0]]}, "sample 0 is a StringThread and no pair"),
        ({"dataset": [*preferences(1), preferences(1)[0] * 2]}, "sample 1 is a tuple of 4 and no pair"),
        ({"dataset": [(StringThread([]), TOO_LONG)]}, "the preferred side of sample 0 is a thread without turns"),
        ({"dataset": [(TOO_LONG, StringThread().user("?"))]}, "the rejected side of sample 0 has no turn to learn"),
        ({"dataset": [("yes", "no")]}, "the preferred side of sample 0 is a str"),
        ({"epochs": -1}, "epochs must be more than 0"),
        ({"samples_per_batch": 0}, "samples_per_batch must be at least 1"),
    ],
)
async def test_what_cannot_be_trained_is_refused_at_once(
    policy: TrainingModel, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        DPO(**{"dataset": preferences(2), "model": policy, "logger": Records()} | arguments)


async def test_arguments_may_be_given_by_position(policy: TrainingModel, stage: Stage) -> None:
    trainer = DPO(preferences(2), policy, Records(), stage, [], 1e-4, None, 4, 0.5, 0.2, 2.0, True, 7, True)
    assert (trainer.kl_beta, trainer.epochs, trainer.data_seed, trainer.use_tangents) == (0.2, 2.0, 7, True)
    assert DPO(preferences(1), policy).stage_notifier.stage_name == "DPO Training"
