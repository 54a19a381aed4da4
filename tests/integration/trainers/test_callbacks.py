"""What a trainer does now and then."""

import logging
from typing import Any

import pytest

from harmonia.client import StringThread, TrainingModel
from harmonia.errors import InvalidRequestError
from harmonia.graders import BaseGrader, IgnoreGradeException
from harmonia.trainers.callbacks import (
    CheckpointCallback,
    GenerateSamplesCallback,
    GraderEvalCallback,
    RecipeCallback,
    ValidationLossCallback,
    invoke_callbacks,
)
from tests.unit.trainers.recorders import lessons

ASK = StringThread([("user", "What is blue?")], metadata={"id": 7})
ENDLESS = StringThread([("user", "Tell me more."), ("assistant", "And so on. " * 100)])


class Ticks(RecipeCallback):
    """Remembers when it ran."""

    def __init__(self, frequency: float, **options: Any) -> None:
        super().__init__(frequency, **options)
        self.ran: list[float] = []

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        self.ran.append(current_percentage)
        return {"ticks": len(self.ran)}


async def ran(ticks: Ticks, shares: list[float]) -> list[float]:
    for share in shares:
        await ticks.maybe_call(share)
    return ticks.ran


# ------------------------------------------------------------------------------------------------------- when


@pytest.mark.parametrize(
    ("frequency", "shares", "expected"),
    [
        (0.5, [0, 0.2, 0.4, 0.6, 0.8, 1.0], [0, 0.6, 1.0]),
        (0.25, [0, 0.3, 0.45, 0.55, 1.0], [0, 0.3, 0.55, 1.0]),
        (0.4, [0, 0.5, 0.95, 1.0, 1.0, 1.4], [0, 0.5, 0.95, 1.0]),
        (2.0, [0, 0.5, 1.0], [1.0]),
        (0.1, [0.05, 0.95, 1.2], [0.05, 0.95, 1.2]),
    ],
)
async def test_it_runs_at_the_start_each_time_another_share_is_done_and_at_the_end(
    frequency: float, shares: list[float], expected: list[float]
) -> None:
    assert await ran(Ticks(frequency), shares) == expected


@pytest.mark.parametrize("frequency", [0.1, 0.05, 0.2, 1 / 3])
async def test_every_ten_percent_is_every_ten_percent_whatever_floats_say(frequency: float) -> None:
    steps = round(1 / frequency)
    sums, shares = 0.0, []
    for _ in range(steps):
        shares.append(sums)
        sums += frequency
    assert len(await ran(Ticks(frequency), [*shares, 1.0])) == steps + 1


async def test_at_the_end_only_if_wanted() -> None:
    assert await ran(Ticks(0.4, force_run_on_exit=False), [0, 0.8, 1.0]) == [0, 0.8]


async def test_a_callback_goes_on_where_another_was() -> None:
    first, second = Ticks(0.25), Ticks(0.25)
    await ran(first, [0, 0.3])
    second.last_call = first.last_call
    assert first.last_call == 0.25 and await ran(second, [0.3, 0.45, 0.5]) == [0.5]


@pytest.mark.parametrize("frequency", [0, -0.1, float("nan")])
def test_a_frequency_that_is_none(frequency: float) -> None:
    with pytest.raises(InvalidRequestError, match="frequency must be more than 0"):
        Ticks(frequency)


# ----------------------------------------------------------------------------------------------------- metrics


async def test_all_metrics_with_their_prefixes_and_how_much_is_done() -> None:
    callbacks = [Ticks(0.5, log_key_prefix="clock"), Ticks(0.1)]
    assert await invoke_callbacks(callbacks, 0.5) == {
        "clock/ticks": 1,
        "ticks": 1,
        "training/completion_percentage": 0.5,
        "completion_percentage": 0.5,
    }
    assert await invoke_callbacks([], 1) == {"training/completion_percentage": 1.0, "completion_percentage": 1.0}


async def test_two_callbacks_with_one_key_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "harmonia"):
        assert (await invoke_callbacks([Ticks(0.5), Ticks(0.5)], 0))["ticks"] == 1
    assert "several callbacks log ['ticks']" in caplog.text


async def test_the_checkpoint_callback_says_that_trainers_do_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "harmonia"):
        callback = CheckpointCallback("model", frequency=0.3)
    assert "checkpoint_frequency" in caplog.text and await callback.maybe_call(0) == {}


# ----------------------------------------------------------------------------------------------- with a real model


async def test_validation_loss_is_that_of_training_per_token(policy: TrainingModel) -> None:
    threads = lessons(1) * 4
    callback = ValidationLossCallback(threads, policy)
    metrics = await callback.maybe_call(0)
    for thread in threads:
        await policy.train_language_modelling(thread)
    logs = await policy.optim_step(1e-2)
    loss = logs["loss"] * logs["num_samples"] / logs["num_tokens"]
    assert metrics == {"validation/loss": pytest.approx(loss, rel=1e-4)}
    assert (await callback.maybe_call(0.1))["validation/loss"] < loss


async def test_validation_counts_what_it_leaves_out(policy: TrainingModel, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "harmonia"):
        metrics = await ValidationLossCallback([*lessons(2), ENDLESS], policy).maybe_call(0)
        with pytest.raises(RuntimeError, match="no sample of the validation could be scored"):
            await ValidationLossCallback([ENDLESS], policy).maybe_call(0)
    assert metrics.keys() == {"validation/loss", "validation/num_dropped_samples"}
    assert metrics["validation/num_dropped_samples"] == 1 and "sample 2 of 3 failed" in caplog.text


async def test_samples_in_a_table(policy: TrainingModel) -> None:
    greedy = policy.temperature(0.0).max_gen_len(6)
    metrics = await GenerateSamplesCallback([ASK, ASK.assistant("The sky.")], greedy, 0.1).maybe_call(0)
    table = metrics.pop("generation/samples")
    (asked, first, tokens), (again, second, _) = table.rows
    assert asked == again and "What is blue?" in asked and "The sky." not in asked
    assert first == second == (await greedy.generate(ASK)).last_content() and 1 <= tokens <= 6
    assert metrics == {
        "generation/generation_length_mean": tokens,
        "generation/generation_length_std": 0,
        "generation/num_samples": 2,
    }


async def test_a_grader_scores_the_answers(policy: TrainingModel) -> None:
    async def length(thread: StringThread) -> float:
        if thread.metadata["id"] == 8:
            raise IgnoreGradeException("not this one")
        return float(thread.metadata["id"]) * len(thread.get_turns())

    grader = BaseGrader.from_function("length", length)
    threads = [StringThread([("user", "Hi")], metadata={"id": number}) for number in (6, 7, 8)]
    callback = GraderEvalCallback(threads, policy.max_gen_len(4), grader, 0.5)
    metrics = await callback.maybe_call(0)
    assert metrics["validation/rewards/score/mean"] == 13 and metrics["validation/rewards/score/count"] == 2
    assert metrics["validation/num_samples"] == 3 and 1 <= metrics["validation/generation_length_mean"] <= 4
    assert "validation/num_dropped_samples" not in metrics, "what should not count is no failure"
    assert grader.get_logs() == {}
    keeping = GraderEvalCallback(threads, policy.max_gen_len(4), grader, 0.5, "held_out", clear_grader_logs=False)
    assert "held_out/rewards/score/mean" in await keeping.maybe_call(0) and grader.get_logs()["score/count"] == 2


async def test_a_grader_that_always_fails_ends_the_training(policy: TrainingModel) -> None:
    async def broken(thread: StringThread) -> float:
        raise ValueError("no such key")

    callback = GraderEvalCallback([ASK], policy.max_gen_len(2), BaseGrader.from_function("broken", broken), 0.5)
    with pytest.raises(RuntimeError, match="could be graded; the log says why"):
        await callback.maybe_call(0)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: ValidationLossCallback([], model),
        lambda model: GenerateSamplesCallback([], model, 0.1),
        lambda model: GraderEvalCallback([], model, None, 0.1),
    ],
)
def test_nothing_to_look_at(make: Any) -> None:
    with pytest.raises(InvalidRequestError, match="set is empty; give at least one thread"):
        make(None)
