"""Counters, gauges and histograms of one engine: everything that answers "why is it slow?"."""

from __future__ import annotations

import bisect
from collections import defaultdict
from dataclasses import dataclass, field

import msgspec
import numpy as np

from harmonia.protocol.messages import Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, float("inf"))
_MANY = 1024
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, float("inf"))


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot, in the shapes of the protocol's `Stats`."""

    gauges: dict[str, float]
    counters: dict[str, float]
    by_model: dict[str, dict[str, float]]
    histograms: dict[str, dict[str, Histogram]]


@dataclass(slots=True)
class Distribution:
    """A histogram that grows."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * len(self.bounds)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_all(self, values: list[float]) -> None:
        """Count many values at once."""
        places = np.searchsorted(self.bounds, values)
        for place, count in enumerate(np.bincount(places, minlength=len(self.bounds)).tolist()):
            self.counts[place] += count
        self.total += sum(values)

    def snapshot(self) -> Histogram:
        """Cumulative counts, as Prometheus wants them."""
        cumulative, seen = [], 0
        for count in self.counts:
            seen += count
            cumulative.append(seen)
        return Histogram(bounds=self.bounds, counts=tuple(cumulative), total=self.total)


def _seconds() -> Distribution:
    return Distribution(_SECONDS)


@dataclass(slots=True)
class ModelStats:
    """What one model key saw."""

    counters: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    ttft_seconds: Distribution = field(default_factory=_seconds)
    inter_token_seconds: Distribution = field(default_factory=_seconds)
    queue_seconds: Distribution = field(default_factory=_seconds)
    _gaps: list[float] = field(default_factory=list)
    """Times between tokens that are not in the distribution yet: one by one they would cost a step its time."""

    def note_token(self, gap_s: float) -> None:
        """A token came so long after the one before it."""
        self._gaps.append(gap_s)
        if len(self._gaps) == _MANY:
            self._settle()

    def _settle(self) -> None:
        if self._gaps:
            self.inter_token_seconds.observe_all(self._gaps)
            self._gaps.clear()

    def histograms(self) -> dict[str, Histogram]:
        """All distributions by name."""
        self._settle()
        return {
            "ttft_seconds": self.ttft_seconds.snapshot(),
            "inter_token_seconds": self.inter_token_seconds.snapshot(),
            "queue_seconds": self.queue_seconds.snapshot(),
        }


@dataclass(slots=True)
class StatsRecorder:
    """Everything that the engine counts."""

    counters: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    models: defaultdict[str, ModelStats] = field(default_factory=lambda: defaultdict(ModelStats))
    batch_size: Distribution = field(default_factory=lambda: Distribution(_SIZES))

    def snapshot(self, gauges: dict[str, float], counters: dict[str, float]) -> EngineStats:
        """Everything recorded, with gauges and counters that others keep."""
        histograms = {key: model.histograms() for key, model in self.models.items()}
        return EngineStats(
            gauges=gauges,
            counters={**self.counters, **counters},
            by_model={key: dict(model.counters) for key, model in self.models.items()},
            histograms={**histograms, "*": {"batch_size": self.batch_size.snapshot()}},
        )
