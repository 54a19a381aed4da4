"""What models were used for, and how much happens in a project."""

from __future__ import annotations

from typing import Annotated

from harmonia.sdk.operations.base import Result, chosen, optional, query
from harmonia.sdk.operations.models import ProjectName, ServiceName


class ModelName(Result, frozen=True):
    """A model, in short."""

    id: str
    key: str
    name: str


class Used(Result, frozen=True):
    """Tokens, and the answers for which they were used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    interactions: int


class UsedThen(Used, frozen=True):
    """The same in a bucket of time. bucket_ts: its beginning."""

    bucket_ts: int


class ModelUsage(Used, frozen=True):
    """What a model was used for; `timeseries` has every bucket, empty ones included."""

    model: ModelName
    timeseries: list[UsedThen]


class ProjectUsage(Used, frozen=True):
    """What the models of a project were used for."""

    project_id: str
    timeseries: list[UsedThen]


class UserUsage(Used, frozen=True):
    """What somebody used models for."""

    user_id: str
    timeseries: list[UsedThen]


class ServiceUsage(Used, frozen=True):
    """What a model was used for in a project; `model_service` is None if the model was never in it."""

    project: ProjectName
    model_service: ServiceName | None


class OverallUsage(Result, frozen=True):
    """What all models were used for: `adaptive_models` run at this server, `external_models` at others."""

    total: Used
    adaptive_models: Used
    external_models: Used
    by_model: list[ModelUsage]


class InteractionActivity(Result, frozen=True):
    """Interactions. trend: by which share there are more than in as long a time before; None if there were none."""

    value: int
    per_second: float | None
    trend: float | None


class ScoreActivity(Result, frozen=True):
    """Scores of people and graders."""

    value: int
    trend: float | None


class Activity(Result, frozen=True):
    """How much was asked and scored."""

    interactions: InteractionActivity
    scores: ScoreActivity


class ProjectActivity(Result, frozen=True):
    """Of a project; None for who may not see its interactions."""

    activity: Annotated[Activity | None, chosen(arguments="(timerange: $timerange)")]


USAGE = query("globalUsage", OverallUsage, filter="GlobalUsageFilterInput!")
USAGE_BY_PROJECT = query("modelUsageByProject", list[ProjectUsage], filter="UsagePerProjectFilterInput!")
USAGE_BY_USER = query("modelUsageByUser", list[UserUsage], filter="UsagePerUserFilterInput!")
USAGE_BY_SERVICE = query("modelUsageDetailsByProject", list[ServiceUsage], filter="UsagePerProjectFilterInput!")
ACTIVITY = optional("project", ProjectActivity, idOrKey="IdOrKey!").with_inner(timerange="TimeRange")
