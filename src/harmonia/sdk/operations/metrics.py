"""Metrics and the scores given in them."""

from __future__ import annotations

from typing import Annotated

from harmonia.sdk.operations.base import Result, chosen, mutation, optional, query


class Metric(Result, frozen=True):
    """What feedback is given in: SCALAR or BOOL, HIGHER_IS_BETTER or LOWER_IS_BETTER."""

    id: str
    key: str | None
    name: str
    kind: str
    description: str
    scoring_type: str
    created_at: int
    has_direct_scores: bool
    has_comparison_scores: bool


class MetricName(Result, frozen=True):
    """A metric, in short."""

    key: str | None
    name: str


class ProjectMetric(Result, frozen=True):
    """A metric as a project has it; `created_at` is a moment as in RFC 3339."""

    id: str
    key: str | None
    name: str
    kind: str
    description: str
    scoring_type: str
    created_at: str


class ScoredModel(Result, frozen=True):
    """A model, in short."""

    id: str
    key: str
    name: str


class Timeseries(Result, frozen=True):
    """Scores by time: the beginnings of buckets, empty ones included, with the number of scores and the value of each.

    model: whose scores these are; None if all count. values: None for the average of no scores.
    """

    model: ScoredModel | None
    time_buckets: list[int]
    count: list[int]
    values: list[float | None]


class Trend(Result, frozen=True):
    """The scores of a time against those of as long a time before. trend: a share; None if it was 0 before."""

    trend: float | None
    previous: float
    current: float


class Charted(Result, frozen=True):
    """A metric's scores by time."""

    timeseries: Annotated[list[Timeseries], chosen(arguments="(input: $input)")]


class ChartedProject(Result, frozen=True):
    """One metric of a project."""

    metric: Annotated[Charted | None, chosen(arguments="(metric: $metric)")]


class Compared(Result, frozen=True):
    """A metric's scores against those before; None if there are none in one of the two times."""

    trend: Annotated[Trend | None, chosen(arguments="(input: $input)")]


class ComparedProject(Result, frozen=True):
    """One metric of a project."""

    metric: Annotated[Compared | None, chosen(arguments="(metric: $metric)")]


METRICS = query("metrics", list[Metric])
METRIC = optional("metric", Metric, metricIdOrKey="IdOrKey!", projectIdOrKey="IdOrKey!")
CREATE_METRIC = mutation("createMetric", Metric, project="IdOrKey!", input="MetricCreate!")
TIMESERIES = optional("project", ChartedProject, idOrKey="IdOrKey!").with_inner(
    metric="IdOrKey!", input="TimeseriesInput!"
)
TREND = optional("project", ComparedProject, idOrKey="IdOrKey!").with_inner(
    metric="IdOrKey!", input="MetricTrendInput!"
)
