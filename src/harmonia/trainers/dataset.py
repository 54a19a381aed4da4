"""Samples in a shuffled order that a checkpoint can remember."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Self, TypeVar

import numpy as np

from harmonia.errors import InvalidRequestError

T = TypeVar("T")


class DataSet(Generic[T]):
    """An iterator over samples in the order of `numpy.random.default_rng(seed).permutation`.

    allow_looping: start over in a new order, without end; otherwise every sample comes once. A sample whose `metadata`
    is a dict gets the number of its draw, counted from 0, as `metadata["sample_index"]`.

    `idx` (samples drawn so far), `access_indices` (the order, one entry per sample of every epoch begun) and `rng` are
    what has to be put back to go on where another run stopped.
    """

    def __init__(self, threads: Sequence[T], allow_looping: bool = False, seed: int = 42) -> None:
        if len(threads) == 0:
            raise InvalidRequestError("the data set is empty; give at least one sample", field="dataset")
        self.threads = threads
        self.allow_looping = allow_looping
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        """Begin anew, in the same order as the first time."""
        self.rng = np.random.default_rng(self.seed)
        self.idx = 0
        self.access_indices = self._permutation()

    def completion_percentage(self) -> float:
        """Samples drawn over samples there are; more than 1 after the first epoch."""
        return self.idx / len(self.threads)

    def __len__(self) -> int:
        return len(self.threads)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self.idx >= len(self.access_indices):
            if not self.allow_looping:
                raise StopIteration
            self.access_indices += self._permutation()
        sample = self.threads[self.access_indices[self.idx]]
        metadata = getattr(sample, "metadata", None)
        if isinstance(metadata, dict):
            metadata["sample_index"] = self.idx
        self.idx += 1
        return sample

    def _permutation(self) -> list[int]:
        return [int(index) for index in self.rng.permutation(len(self.threads))]
