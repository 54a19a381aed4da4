"""Learning rates over a training."""

import math

import pytest

from harmonia.errors import InvalidRequestError
from harmonia.trainers.schedules import CombinedSchedule, CosineScheduler, CosineSchedulerWithoutWarmup


@pytest.mark.parametrize(
    ("share", "rate"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.55), (1.0, 0.1), (0.325, 0.1 + 0.45 * (math.cos(math.pi / 4) + 1))],
)
def test_the_cosine_rises_and_falls(share: float, rate: float) -> None:
    assert CosineScheduler(1.0)(share) == pytest.approx(rate)


def test_a_batch_that_reaches_past_the_end_follows_the_same_curve() -> None:
    share = 1.04
    curve = 0.1 + 0.45 * (math.cos(math.pi * (share - 0.1) / 0.9) + 1)
    assert CosineScheduler(1.0)(share) == pytest.approx(curve)
    assert curve > CosineScheduler(1.0)(1.0)


def test_defaults_and_the_meaning_of_decay() -> None:
    assert CosineScheduler()(0.1) == pytest.approx(1e-5)
    assert CosineScheduler(1e-3, 0.5, 4.0)(1.0) == pytest.approx(2.5e-4)
    assert CosineScheduler(1.0, warmup_percentage=0)(0) == 1


def test_without_warmup_it_begins_at_the_top() -> None:
    schedule = CosineSchedulerWithoutWarmup(2.0, 10.0)
    assert [schedule(share) for share in (0, 0.5, 1)] == pytest.approx([2.0, 1.1, 0.2])


def test_combined_schedules_run_one_after_the_other() -> None:
    schedule = CombinedSchedule(lambda share: share, lambda share: 10 + share, 0.25)
    assert [schedule(share) for share in (0.0, 0.125, 0.25, 0.625, 1.0)] == pytest.approx([0, 0.5, 10, 10.5, 11])


def test_shares_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="got 10"):
        CosineScheduler(1e-5, warmup_percentage=10)
    with pytest.raises(InvalidRequestError, match="decay_factor must be more than 0"):
        CosineSchedulerWithoutWarmup(1e-5, 0)
    with pytest.raises(InvalidRequestError, match="change_point"):
        CombinedSchedule(CosineScheduler(), CosineScheduler(), 25)
