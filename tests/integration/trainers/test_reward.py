"""Reward models on a real worker."""

from typing import Any

import pytest

from harmonia.client import StringThread, TrainingModel
from harmonia.errors import InvalidRequestError
from harmonia.trainers import RewardModelling
from tests.unit.trainers.recorders import TOO_LONG, Records, Stage

ASK = StringThread([("user", "Are you well?")])
KIND, RUDE = ASK.assistant("Thank you, yes."), ASK.assistant("Go away!")


def rated(thread: StringThread, reward: Any) -> StringThread:
    """The same conversation with a reward to learn."""
    return StringThread(thread.get_turns(), metadata={"res": reward})


async def test_the_preferred_side_scores_higher(scorer: TrainingModel, records: Records, stage: Stage) -> None:
    await RewardModelling([(KIND, RUDE)] * 4, scorer, records, stage, lr=0.01, samples_per_batch=4, epochs=6).run()
    losses = records.column("loss")
    assert losses[-1] < losses[0]
    assert await scorer.score_last_token(KIND) > await scorer.score_last_token(RUDE)


async def test_scores_approach_the_rewards(scorer: TrainingModel, records: Records, stage: Stage) -> None:
    rows = [rated(KIND, 1), rated(RUDE, -1.0)]
    await RewardModelling(rows, scorer, records, stage, lr=0.02, samples_per_batch=2, epochs=15).run()
    losses = records.column("loss")
    assert losses[0] == pytest.approx(1.0)  # a new head scores 0
    assert losses[-1] < 0.3
    assert await scorer.score_last_token(KIND) > 0 > await scorer.score_last_token(RUDE)


async def test_the_last_batch_reaches_into_the_next_epoch(
    scorer: TrainingModel, records: Records, stage: Stage
) -> None:
    await RewardModelling([(KIND, RUDE)] * 5, scorer, records, stage, samples_per_batch=2).run()
    assert records.column("num_samples") == [2, 2, 2]
    assert records.column("completion_percentage") == [0.4, 0.8, 1.2]
    assert stage.progress[-1] == (5, 5)


async def test_samples_that_are_too_long_are_replaced_and_counted(
    scorer: TrainingModel, records: Records, stage: Stage
) -> None:
    rows = [*[rated(KIND, 1.0)] * 5, rated(TOO_LONG, 0.0)]
    await RewardModelling(rows, scorer, records, stage, samples_per_batch=2).run()
    assert set(records.column("num_samples")) == {2}
    assert records.column("num_dropped_samples")[-1] >= 1


async def test_when_nothing_can_be_trained_it_ends(scorer: TrainingModel, stage: Stage) -> None:
    with pytest.raises(RuntimeError, match=r"Batch processing failed: .*SequenceTooLongError"):
        await RewardModelling([(KIND, TOO_LONG)], scorer, Records(), stage, samples_per_batch=4).run()


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ([], "the data set is empty"),
        ([(KIND,)], "sample 0 is a tuple of 1 and no pair"),
        ([(KIND, StringThread([]))], "the rejected side of sample 0 is a thread without turns"),
        ([StringThread([], metadata={"res": 1.0})], "sample 0 is a thread without turns"),
    ],
)
async def test_what_cannot_be_learned_is_refused_at_once(scorer: TrainingModel, dataset: list[Any], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        RewardModelling(dataset, scorer, Records())


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (KIND, r'has no metadata\["res"\]'),
        (rated(KIND, "good"), r'has metadata\["res"\] = \'good\'; give a finite number'),
        (rated(KIND, float("nan")), "= nan"),
    ],
)
async def test_samples_without_a_reward_are_left_out(
    scorer: TrainingModel, stage: Stage, sample: StringThread, says: str
) -> None:
    records = Records()
    await RewardModelling([rated(KIND, 1), rated(RUDE, 0), sample], scorer, records, stage, samples_per_batch=3).run()
    assert records.records[-1]["num_dropped_samples"] >= 1
    with pytest.raises(RuntimeError, match=says):
        await RewardModelling([sample], scorer, Records(), stage).run()


async def test_other_bad_input(scorer: TrainingModel, policy: TrainingModel) -> None:
    with pytest.raises(InvalidRequestError, match="epochs must be more than 0"):
        RewardModelling([(KIND, RUDE)], scorer, Records(), epochs=0)
    with pytest.raises(InvalidRequestError, match="into_scoring_model"):
        RewardModelling([(KIND, RUDE)], policy, Records())
    trainer = RewardModelling([(KIND, RUDE)], scorer, Records())
    with pytest.raises(InvalidRequestError, match="res"):
        await trainer.train_rm(KIND)


async def test_arguments_may_be_given_by_position(scorer: TrainingModel, stage: Stage) -> None:
    trainer = RewardModelling([(KIND, RUDE)], scorer, Records(), stage, [], 1e-4, None, 4, 0.5, 2, True, 7)
    assert (trainer.job_notifier, trainer.samples_per_batch, trainer.epochs, trainer.data_seed) == (stage, 4, 2, 7)
    assert RewardModelling([(KIND, RUDE)], scorer).job_notifier.stage_name == "Reward Model Training"
