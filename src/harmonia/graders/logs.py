"""What graders remember of their work, and what metric loggers get to see of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat, TypedDict, TypeVar

from harmonia.client.table import Table

MOST_SAMPLES = 15
"""Rows of a table of samples, unless all are asked for."""

LogT = TypeVar("LogT", bound=Mapping[str, Any])


class SuccessJudgeLog(TypedDict):
    """A conversation that a judge scored."""

    prompt: str
    reasoning: str
    score: float


class FailedJudgeLog(TypedDict):
    """A conversation that a judge could not score."""

    prompt: str
    error: str


def summarize_scores(logs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """`score/mean`, `std` (n - 1; 0 for one score), `min`, `max` and `count` of the logs that have a "score"."""
    scores = [float(log["score"]) for log in logs if isinstance(log.get("score"), SupportsFloat)]
    if not scores:
        return {}
    return {
        "score/mean": statistics.fmean(scores),
        "score/std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "score/min": min(scores),
        "score/max": max(scores),
        "score/count": len(scores),
    }


def sample_score_distribution(success_samples: Sequence[LogT], max_n_samples: int = MOST_SAMPLES) -> list[LogT]:
    """At most so many samples, spread evenly from the lowest score to the highest, both included."""
    ranked = sorted(success_samples, key=lambda log: float(log["score"]))
    if len(ranked) <= max_n_samples:
        return ranked
    if max_n_samples < 2:
        return ranked[: max(max_n_samples, 0)]
    step = (len(ranked) - 1) / (max_n_samples - 1)
    return [ranked[math.floor(index * step + 0.5)] for index in range(max_n_samples)]


def to_table(logs: Sequence[Mapping[str, Any]]) -> Table:
    """One row per log, one column per key in order of appearance; what a log lacks stays empty."""
    headers = list(dict.fromkeys(key for log in logs for key in log))
    return Table(headers).add_rows([log.get(header, "") for header in headers] for log in logs)
