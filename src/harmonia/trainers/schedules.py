"""Learning rates as functions of the share of the training that is done, 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from harmonia.errors import InvalidRequestError

Scheduler = Callable[[float], float]
"""Takes the share that is done (it may pass 1 by a little) and returns the learning rate."""


@dataclass(frozen=True)
class CosineScheduler:
    """Rises linearly to `lr` during the first `warmup_percentage` (a share: 0.1 is a tenth), then falls along half a
    cosine to `lr / decay_factor`."""

    lr: float = 1e-5
    warmup_percentage: float = 0.1
    decay_factor: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_percentage < 1:
            raise InvalidRequestError(
                f"warmup_percentage is a share of the training: 0 or more, less than 1; got {self.warmup_percentage}",
                field="warmup_percentage",
            )
        _check_decay(self.decay_factor)

    def __call__(self, completion_percentage: float) -> float:
        if completion_percentage < self.warmup_percentage:
            return self.lr * completion_percentage / self.warmup_percentage
        share = (completion_percentage - self.warmup_percentage) / (1 - self.warmup_percentage)
        return _half_cosine(share, self.lr, self.lr / self.decay_factor)


@dataclass(frozen=True)
class CosineSchedulerWithoutWarmup:
    """Falls along half a cosine from `lr` to `lr / decay_factor`."""

    lr: float = 1e-5
    decay_factor: float = 10.0

    def __post_init__(self) -> None:
        _check_decay(self.decay_factor)

    def __call__(self, completion_percentage: float) -> float:
        return _half_cosine(completion_percentage, self.lr, self.lr / self.decay_factor)


@dataclass(frozen=True)
class CombinedSchedule:
    """Schedule `a` until the share `change_point`, then `b`; each of them sees its own part run from 0 to 1."""

    a: Scheduler
    b: Scheduler
    change_point: float

    def __post_init__(self) -> None:
        if not 0 < self.change_point < 1:
            raise InvalidRequestError(
                f"change_point is a share of the training between 0 and 1, got {self.change_point}",
                field="change_point",
            )

    def __call__(self, completion_percentage: float) -> float:
        if completion_percentage < self.change_point:
            return self.a(completion_percentage / self.change_point)
        return self.b((completion_percentage - self.change_point) / (1 - self.change_point))


def _half_cosine(share: float, highest: float, lowest: float) -> float:
    return lowest + 0.5 * (math.cos(math.pi * share) + 1) * (highest - lowest)


def _check_decay(decay_factor: float) -> None:
    if not decay_factor > 0:
        raise InvalidRequestError(f"decay_factor must be more than 0, got {decay_factor}", field="decay_factor")
