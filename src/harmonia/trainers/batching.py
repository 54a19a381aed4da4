"""Many calls at once: over all samples, over a batch with replacements for what fails, and in minibatches."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np

from harmonia.client.recipe.notifiers import StageNotifier
from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger

log = get_logger(__name__)

_SHOWN_FAILURES = 10

S = TypeVar("S")
T = TypeVar("T")


async def async_map(
    f: Callable[[S], Awaitable[T]],
    data: Sequence[S],
    max_concurrent_samples: int | None = None,
    stage_notifier: StageNotifier | None = None,
) -> list[T]:
    """f of every sample, in their order, all at the same time or `max_concurrent_samples` of them.

    The first error is raised, and what still runs is cancelled. `stage_notifier` is told how many are done.
    """
    limited = _Limited(f, len(data), max_concurrent_samples, stage_notifier)
    return await _together(limited(item) for item in data)


@overload
async def async_map_fallible(
    f: Callable[[S], Awaitable[T]],
    data: Sequence[S],
    max_concurrent_samples: int | None = None,
    stage_notifier: StageNotifier | None = None,
    return_indices: Literal[False] = False,
) -> list[T]: ...
@overload
async def async_map_fallible(
    f: Callable[[S], Awaitable[T]],
    data: Sequence[S],
    max_concurrent_samples: int | None = None,
    stage_notifier: StageNotifier | None = None,
    *,
    return_indices: Literal[True],
) -> list[tuple[int, T]]: ...
async def async_map_fallible(
    f: Callable[[S], Awaitable[T]],
    data: Sequence[S],
    max_concurrent_samples: int | None = None,
    stage_notifier: StageNotifier | None = None,
    return_indices: bool = False,
) -> list[T] | list[tuple[int, T]]:
    """As `async_map` without the samples that fail, of which the first ten are logged, and how many there were.

    return_indices: give (position in `data`, result) pairs, which tell what is missing.
    """
    limited = _Limited(f, len(data), max_concurrent_samples, stage_notifier)
    num_failed = 0

    async def attempt(index: int) -> list[tuple[int, T]]:
        nonlocal num_failed
        try:
            return [(index, await limited(data[index]))]
        except Exception as error:  # noqa: BLE001 - whatever one sample's function raises must not end the others
            num_failed += 1
            if num_failed <= _SHOWN_FAILURES:
                log.warning("sample %d of %d failed and is left out: %s", index, len(data), described(error))
            return []

    pairs = [pair for found in await _together(map(attempt, range(len(data)))) for pair in found]
    if num_failed > _SHOWN_FAILURES:
        log.warning("%d of %d samples failed and are left out", num_failed, len(data))
    return pairs if return_indices else [result for _, result in pairs]


async def batch_process_fallible(
    fn: Callable[[S], Awaitable[T]],
    data: Sequence[S],
    batch_size: int,
    stage_notifier: StageNotifier | None = None,
) -> list[tuple[int, T]]:
    """`async_map_fallible` over `batch_size` samples after the other; (position in `data`, result) pairs."""
    _check_positive("batch_size", batch_size)
    pairs: list[tuple[int, T]] = []
    for start in range(0, len(data), batch_size):
        found = await async_map_fallible(fn, data[start : start + batch_size], return_indices=True)
        pairs += [(start + index, result) for index, result in found]
        if stage_notifier:
            done = min(start + batch_size, len(data))
            stage_notifier.report_progress(tot_num_samples=len(data), processed_num_samples=done)
    return pairs


async def async_map_batch(
    f: Callable[[S], Awaitable[T]], data: Iterator[S], batch_size: int, max_failure_fraction: float = 0.5
) -> list[T]:
    """f of the next `batch_size` samples of `data`, all at the same time; fewer if it ends before.

    The next sample takes the place of one that fails, if there is one. Results that are None are left out, the others
    are in the order of their places. RuntimeError when more than `max_failure_fraction` of a batch had failed already
    and yet another one does.
    """
    _check_positive("batch_size", batch_size)
    num_failed = 0

    async def fill(first: S) -> T | None:
        nonlocal num_failed
        for item in itertools.chain([first], data):
            try:
                return await f(item)
            except Exception as error:
                if num_failed > max_failure_fraction * batch_size:
                    raise batch_failure(num_failed + 1, batch_size, error) from error
                num_failed += 1
        return None

    drawn = list(itertools.islice(data, batch_size))
    results = await _together(map(fill, drawn))
    return [result for result in results if result is not None]


def batch_failure(num_failed: int, batch_size: int, error: Exception) -> RuntimeError:
    """The error that ends a run in which too many samples fail."""
    return RuntimeError(
        f"Batch processing failed: {num_failed} samples failed for a batch of {batch_size}; the last one because of "
        f"{described(error)}"
    )


def described(error: Exception) -> str:
    """The kind of an error and what it says, in one line."""
    return f"{type(error).__name__}: {error}"


def get_minibatches(dataset: list[T], mini_batch_size: int, number_of_epochs: int) -> list[list[T]]:
    """All samples in random order (of the global `random`), `mini_batch_size` at a time, the last ones maybe fewer; and
    so `number_of_epochs` times."""
    _check_positive("mini_batch_size", mini_batch_size)
    shuffles = [random.sample(dataset, len(dataset)) for _ in range(number_of_epochs)]
    return [
        shuffled[start : start + mini_batch_size]
        for shuffled in shuffles
        for start in range(0, len(shuffled), mini_batch_size)
    ]


def sample_data(data: list[T], epochs: float) -> list[T]:
    """A random share of the samples (of numpy's global generator): half of them for 0.5, each of them from 1 on."""
    if not epochs >= 0:
        raise InvalidRequestError(f"epochs must be 0 or more, got {epochs}", field="epochs")
    return [data[index] for index in np.random.permutation(len(data))[: int(len(data) * epochs)]]


def weighted_mean(values: list[list[float]], weights: list[list[float]]) -> float:
    """The mean of all values of all lists by their weights."""
    pairs = [
        pair
        for some, their_weights in zip(values, weights, strict=True)
        for pair in zip(some, their_weights, strict=True)
    ]
    total = sum(weight for _, weight in pairs)
    if total == 0:
        raise InvalidRequestError("the weights add up to 0, so there is no mean", field="weights")
    return sum(value * weight for value, weight in pairs) / total


@dataclass
class _Limited(Generic[S, T]):
    """A function that runs a limited number of times at once, and reports whenever one more hundredth is done."""

    f: Callable[[S], Awaitable[T]]
    total: int
    limit: int | None
    stage_notifier: StageNotifier | None
    done: int = 0
    _places: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        if self.limit is not None:
            _check_positive("max_concurrent_samples", self.limit)
        self._places = asyncio.Semaphore(self.limit or max(1, self.total))

    async def __call__(self, item: S) -> T:
        async with self._places:
            try:
                return await self.f(item)
            finally:
                self._report()

    def _report(self) -> None:
        self.done += 1
        if self.stage_notifier and self.done * 100 // self.total > (self.done - 1) * 100 // self.total:
            self.stage_notifier.report_progress(tot_num_samples=self.total, processed_num_samples=self.done)


async def _together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; the first error or a cancellation ends the others before it is raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_positive(name: str, number: int) -> None:
    if number < 1:
        raise InvalidRequestError(f"{name} must be at least 1, got {number}", field=name)
