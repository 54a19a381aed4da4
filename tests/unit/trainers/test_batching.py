"""Many calls at once, and what becomes of those that fail."""

import asyncio
import random
from itertools import chain

import numpy as np
import pytest

from harmonia.errors import InvalidRequestError, SequenceTooLongError
from harmonia.trainers.batching import (
    async_map,
    async_map_batch,
    async_map_fallible,
    batch_process_fallible,
    get_minibatches,
    sample_data,
    weighted_mean,
)
from tests.unit.trainers.recorders import Stage


class Running:
    """Counts its calls; fails for negative numbers. Larger numbers take longer."""

    def __init__(self) -> None:
        self.now = self.most = self.cancelled = 0

    async def __call__(self, number: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(abs(number) / 1000)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
        if number < 0:
            raise SequenceTooLongError(f"{number} is too long")
        return number * 10


# ------------------------------------------------------------------------------------------------------ all samples


async def test_results_come_in_the_order_of_the_samples() -> None:
    running = Running()
    assert await async_map(running, [30, 10, 20]) == [300, 100, 200]
    assert running.most == 3
    assert await async_map(running, []) == []


async def test_as_many_as_allowed_run_at_once() -> None:
    running = Running()
    await async_map(running, [5] * 9, max_concurrent_samples=2)
    assert running.most == 2
    with pytest.raises(InvalidRequestError, match="max_concurrent_samples"):
        await async_map(running, [5], max_concurrent_samples=0)


async def test_the_first_error_ends_the_others() -> None:
    running = Running()
    with pytest.raises(SequenceTooLongError, match="-1"):
        await async_map(running, [500, -1, 500])
    assert running.cancelled == 2


async def test_whoever_cancels_waits_for_the_calls_to_end() -> None:
    running = Running()
    task = asyncio.create_task(async_map(running, [500, 500]))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running.cancelled == 2


async def test_failures_are_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert await async_map_fallible(Running(), [3, -2, 1]) == [30, 10]
    assert "sample 1 of 3 failed and is left out: SequenceTooLongError: -2 is too long" in caplog.text
    assert await async_map_fallible(Running(), [3, -2, 1], return_indices=True) == [(0, 30), (2, 10)]
    caplog.clear()
    assert await async_map_fallible(Running(), [*range(-12, 1)]) == [0]
    assert caplog.text.count("is left out") == 10 and "12 of 13 samples failed" in caplog.text


async def test_progress_counts_failures_too(stage: Stage) -> None:
    await async_map_fallible(Running(), [1, -1, 1], stage_notifier=stage)
    assert stage.progress == [(1, 3), (2, 3), (3, 3)]


async def test_progress_is_told_at_most_a_hundred_times(stage: Stage) -> None:
    await async_map(Running(), [0] * 1000, stage_notifier=stage)
    assert len(stage.progress) == 100
    assert stage.progress[-1] == (1000, 1000)


async def test_batches_run_one_after_the_other(stage: Stage) -> None:
    running = Running()
    assert await batch_process_fallible(running, [1, -2, 3, 4, 5], 2, stage) == [(0, 10), (2, 30), (3, 40), (4, 50)]
    assert running.most == 2
    assert stage.progress == [(2, 5), (4, 5), (5, 5)]
    with pytest.raises(InvalidRequestError, match="batch_size"):
        await batch_process_fallible(running, [1], 0)


# --------------------------------------------------------------------------------------------------------- a batch


async def test_a_batch_takes_what_it_needs() -> None:
    numbers = iter(range(1, 10))
    assert await async_map_batch(Running(), numbers, 4) == [10, 20, 30, 40]
    assert next(numbers) == 5
    assert await async_map_batch(Running(), iter([1, 2]), 4) == [10, 20]
    assert await async_map_batch(Running(), iter([]), 4) == []


async def test_the_next_sample_takes_the_place_of_one_that_fails() -> None:
    numbers = iter([1, -2, 3, 4, 5, 6])
    assert await async_map_batch(Running(), numbers, 4) == [10, 50, 30, 40]
    assert next(numbers) == 6


async def test_a_function_that_fails_at_once_does_not_take_the_place_of_later_samples() -> None:
    async def at_once(number: int) -> int:
        if number < 0:
            raise ValueError(number)
        return number

    assert await async_map_batch(at_once, iter([-1, 2, 3, 4, 5]), 4) == [5, 2, 3, 4]


async def test_a_failure_without_a_successor_is_lost() -> None:
    assert await async_map_batch(Running(), iter([1, -2, 3]), 3) == [10, 30]
    assert await async_map_batch(Running(), iter([-1, -2]), 512) == []


async def test_results_that_are_none_are_left_out() -> None:
    async def halve(number: int) -> int | None:
        return None if number % 2 else number // 2

    assert await async_map_batch(halve, iter(range(6)), 6) == [0, 1, 2]


@pytest.mark.parametrize(("size", "fraction", "tolerated"), [(4, 0.5, 3), (10, 0.5, 6), (1, 0.5, 1), (10, 0.1, 2)])
async def test_more_failures_than_allowed_end_it(size: int, fraction: float, tolerated: int) -> None:
    """One more failure than the first that exceeds the fraction: failures are counted before they are compared."""
    good = [1] * size
    assert await async_map_batch(Running(), iter([-1] * tolerated + good), size, fraction) == [10] * size
    with pytest.raises(RuntimeError, match=r"^Batch processing failed: .* samples failed .*-1 is too long") as caught:
        await async_map_batch(Running(), iter([-1] * (tolerated + 1) + good), size, fraction)
    assert isinstance(caught.value.__cause__, SequenceTooLongError)


async def test_when_a_batch_gives_up_its_other_calls_end() -> None:
    running = Running()
    with pytest.raises(RuntimeError):
        await async_map_batch(running, iter([500, -1, -1, -1, -1, -1]), 4)
    assert running.now == 0
    assert running.cancelled == 1


# ----------------------------------------------------------------------------------------------------- minibatches


def test_minibatches_hold_every_sample_once_per_epoch() -> None:
    random.seed(3)
    expected = [random.sample(range(7), 7) for _ in range(2)]
    random.seed(3)
    batches = get_minibatches(list(range(7)), 3, 2)
    assert [len(batch) for batch in batches] == [3, 3, 1, 3, 3, 1]
    assert [list(chain.from_iterable(epoch)) for epoch in (batches[:3], batches[3:])] == expected


def test_a_share_is_drawn_at_random() -> None:
    np.random.seed(1)
    drawn = [sample_data(list("abcdef"), 0.5) for _ in range(20)]
    assert all(len(set(some)) == 3 for some in drawn) and len({tuple(some) for some in drawn}) > 10
    assert sorted(sample_data([1, 2], 1.5)) == [1, 2]
    assert sample_data([1, 2], 0.4) == []


def test_means_by_weight() -> None:
    assert weighted_mean([[1.0, 2.0], [6.0]], [[1.0, 0.0], [4.0]]) == pytest.approx(5.0)
    with pytest.raises(InvalidRequestError, match="no mean"):
        weighted_mean([[1.0]], [[0.0]])
