"""What models were used for."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import strawberry

from harmonia.server.db import projects as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.models import Model, ModelService
from harmonia.server.graphql.paging import IdOrKeyCondition, TimeRange, span_of
from harmonia.server.graphql.people import User
from harmonia.server.graphql.projects import Project
from harmonia.server.graphql.scalars import LongInt, Timestamp
from harmonia.server.services.figures import usage as service
from harmonia.server.services.figures.buckets import WHOLE
from harmonia.server.services.figures.usage import Amount, UsageWhere, UsageWish
from harmonia.server.services.interactions.filters import OneOf


@strawberry.enum
class DateBucketUnit(Enum):
    """What usage is counted by. Weeks begin on Mondays; NO_GROUP_BY_DATE: the whole time as one."""

    HOUR = "HOUR"
    DAY = "DAY"
    WEEK = "WEEK"
    MONTH = "MONTH"
    QUARTER = "QUARTER"
    YEAR = "YEAR"
    NO_GROUP_BY_DATE = "NO_GROUP_BY_DATE"


@strawberry.type
class UsageStats:
    """Tokens, and the answers for which they were used."""

    prompt_tokens: LongInt
    completion_tokens: LongInt
    total_tokens: LongInt
    interactions: int


@strawberry.type
class UsageAggregateItem(UsageStats):
    """The same in a bucket of time. bucketTs: its beginning."""

    bucket_ts: Timestamp


@strawberry.type
class UsageStatsByModel(UsageStats):
    """What a model was used for."""

    model: Model
    timeseries: list[UsageAggregateItem]


@strawberry.type
class UsageStatsByProject(UsageStats):
    """What the models of a project were used for."""

    project_id: uuid.UUID
    timeseries: list[UsageAggregateItem]


@strawberry.type
class UsageStatsByUser(UsageStats):
    """What somebody used models for."""

    user_id: uuid.UUID
    timeseries: list[UsageAggregateItem]


@strawberry.type
class ProjectItem:
    """A project, in short."""

    id: uuid.UUID
    key: str
    name: str
    description: str

    @classmethod
    def of(cls, row: db.Project) -> ProjectItem:
        """From its row."""
        return cls(id=row.id, key=row.key, name=row.name, description=row.description)


@strawberry.type
class UsageAggregatePerProjectItem(UsageStats):
    """What a model was used for in a project. modelService: null if the model was never in it."""

    project: ProjectItem
    model_service: ModelService | None


@strawberry.type
class UsageOptionsResult:
    """Who asked which models where."""

    users: list[User]
    projects: list[Project]
    models: list[Model]


@strawberry.type
class GlobalUsage:
    """What all models were used for: those that run here, and those of others."""

    total: UsageStats
    adaptive_models: UsageStats
    external_models: UsageStats
    by_model: list[UsageStatsByModel]


@strawberry.input
class UsageFilterExpression:
    """What holds of an answer, in any combination."""

    and_: list[UsageFilterExpression] | None = strawberry.field(name="and", default=None)
    or_: list[UsageFilterExpression] | None = strawberry.field(name="or", default=None)
    not_: UsageFilterExpression | None = strawberry.field(name="not", default=None)
    model: IdOrKeyCondition | None = None
    user: IdOrKeyCondition | None = None
    project: IdOrKeyCondition | None = None

    @property
    def where(self) -> UsageWhere:
        """For services."""
        return UsageWhere(
            all_of=tuple(part.where for part in self.and_ or ()),
            any_of=None if self.or_ is None else tuple(part.where for part in self.or_),
            negated=None if self.not_ is None else self.not_.where,
            model=_one_of(self.model),
            user=_one_of(self.user),
            project=_one_of(self.project),
        )


def _one_of(given: IdOrKeyCondition | None) -> OneOf | None:
    if given is None:
        return None
    return OneOf(eq=given.eq, any_of=None if given.in_ is None else tuple(given.in_), neq=given.neq)


@strawberry.input
class _UsageFilter:
    """What all filters of usage have. timezone: a name such as `Europe/Paris`; null: UTC."""

    timerange: TimeRange | None = None
    timezone: str | None = None
    user_ids: list[uuid.UUID] | None = None
    project_ids: list[uuid.UUID] | None = None
    advanced_filter: UsageFilterExpression | None = None

    def wish_by(self, unit: DateBucketUnit, model_ids: Sequence[uuid.UUID] | None = None) -> UsageWish:
        """For services."""
        return UsageWish(
            span=span_of(self.timerange),
            unit=WHOLE if unit is DateBucketUnit.NO_GROUP_BY_DATE else unit.value,
            timezone=self.timezone,
            model_ids=model_ids,
            user_ids=self.user_ids,
            project_ids=self.project_ids,
            where=None if self.advanced_filter is None else self.advanced_filter.where,
        )


@strawberry.input
class UsageFilterInput(_UsageFilter):
    """Usage of one model."""

    model_id: uuid.UUID
    unit: DateBucketUnit


@strawberry.input
class _ModelsFilter(_UsageFilter):
    interval: DateBucketUnit
    model_ids: list[uuid.UUID] | None = None

    @property
    def wish(self) -> UsageWish:
        """For services."""
        return self.wish_by(self.interval, self.model_ids)


@strawberry.input
class UsagePerProjectFilterInput(_ModelsFilter):
    """Usage by project."""


@strawberry.input
class UsagePerUserFilterInput(_ModelsFilter):
    """Usage by user."""


@strawberry.input
class GlobalUsageFilterInput(_ModelsFilter):
    """Usage of everything."""


@strawberry.input
class UsageOptionsInput:
    """In which time."""

    timerange: TimeRange | None = None


def _stats(amount: Amount) -> dict[str, Any]:
    return {
        "prompt_tokens": amount.prompt_tokens,
        "completion_tokens": amount.completion_tokens,
        "total_tokens": amount.prompt_tokens + amount.completion_tokens,
        "interactions": amount.interactions,
    }


def _series(starts: Sequence[int], amounts: Iterable[Amount]) -> list[UsageAggregateItem]:
    return [
        UsageAggregateItem(bucket_ts=Timestamp(start), **_stats(amount))
        for start, amount in zip(starts, amounts, strict=True)
    ]


@strawberry.type
class UsageQuery:
    """Usage of the projects whose interactions the caller may read."""

    @strawberry.field
    async def model_usage(self, info: Info, filter: UsageFilterInput) -> list[UsageAggregateItem]:
        """Of one model by time, empty buckets included."""
        usage = info.context.services.usage
        starts, amounts = await usage.of_model(info.context.caller, filter.model_id, filter.wish_by(filter.unit))
        return _series(starts, amounts)

    @strawberry.field
    async def model_usage_details_by_project(
        self, info: Info, filter: UsagePerProjectFilterInput
    ) -> list[UsageAggregatePerProjectItem]:
        """Of each model in each project, over the whole time."""
        found = await info.context.services.usage.by_service(info.context.caller, filter.wish)
        return [
            UsageAggregatePerProjectItem(
                project=ProjectItem.of(use.project),
                model_service=None if use.service is None else ModelService.of(use.service),
                **_stats(use.amount),
            )
            for use in found
        ]

    @strawberry.field
    async def model_usage_by_project(self, info: Info, filter: UsagePerProjectFilterInput) -> list[UsageStatsByProject]:
        """Of each project, by time."""
        chart = await info.context.services.usage.by(info.context.caller, service.PROJECT, filter.wish)
        return [
            UsageStatsByProject(project_id=key, timeseries=_series(chart.starts, chart.amounts[key]), **_stats(total))
            for key, total in chart.totals().items()
        ]

    @strawberry.field
    async def model_usage_by_user(self, info: Info, filter: UsagePerUserFilterInput) -> list[UsageStatsByUser]:
        """Of each user and service account, by time."""
        chart = await info.context.services.usage.by(info.context.caller, service.USER, filter.wish)
        return [
            UsageStatsByUser(user_id=key, timeseries=_series(chart.starts, chart.amounts[key]), **_stats(total))
            for key, total in chart.totals().items()
        ]

    @strawberry.field
    async def global_usage(self, info: Info, filter: GlobalUsageFilterInput) -> GlobalUsage:
        """Of all models, by time."""
        usage = info.context.services.usage
        chart = await usage.by(info.context.caller, service.MODEL, filter.wish)
        totals, models = chart.totals(), await usage.models(chart.amounts)
        theirs = sum((total for key, total in totals.items() if service.is_external(models[key])), Amount())
        ours = sum((total for key, total in totals.items() if not service.is_external(models[key])), Amount())
        return GlobalUsage(
            total=UsageStats(**_stats(ours + theirs)),
            adaptive_models=UsageStats(**_stats(ours)),
            external_models=UsageStats(**_stats(theirs)),
            by_model=[
                UsageStatsByModel(
                    model=Model.of(models[key]),
                    timeseries=_series(chart.starts, chart.amounts[key]),
                    **_stats(total),
                )
                for key, total in totals.items()
            ],
        )

    @strawberry.field
    async def usage_options(self, info: Info, filter: UsageOptionsInput) -> UsageOptionsResult:
        """What usage can be filtered by."""
        found = await info.context.services.usage.options(info.context.caller, span_of(filter.timerange))
        return UsageOptionsResult(
            users=[User.of(row) for row in found.users],
            projects=[Project.of(row) for row in found.projects],
            models=[Model.of(row) for row in found.models],
        )
