"""Metrics and the scores given in them."""

from __future__ import annotations

from harmonia.sdk.operations.base import Result, mutation, optional, query


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


METRICS = query("metrics", list[Metric])
METRIC = optional("metric", Metric, metricIdOrKey="IdOrKey!", projectIdOrKey="IdOrKey!")
CREATE_METRIC = mutation("createMetric", Metric, project="IdOrKey!", input="MetricCreate!")
