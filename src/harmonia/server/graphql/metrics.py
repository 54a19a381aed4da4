"""Metrics and scores."""

from __future__ import annotations

import uuid
from enum import Enum
from typing import Protocol

import strawberry
from strawberry.scalars import JSON

from harmonia.server.db.metrics import DirectScore as ScoreRow
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.entity_filters import ProjectFilter
from harmonia.server.graphql.figures import ActivityOutput, MetricActivity, MetricFigures
from harmonia.server.graphql.lazy import GRADER, PROJECT, PROJECTS, USER, object_of
from harmonia.server.graphql.paging import TimeRange, span_of
from harmonia.server.graphql.scalars import DateTimeText, IdOrKey, Key, Timestamp, rfc3339
from harmonia.server.services.figures.scores import Subject
from harmonia.server.services.interactions.details import ScoreInfo
from harmonia.server.services.interactions.feedback import NewScore
from harmonia.server.services.metrics import MetricChange, MetricInfo, NewMetric


@strawberry.enum
class MetricKind(Enum):
    """Numbers, or yes and no."""

    SCALAR = "SCALAR"
    BOOL = "BOOL"


@strawberry.enum
class MetricScoringType(Enum):
    """What is good."""

    HIGHER_IS_BETTER = "HIGHER_IS_BETTER"
    LOWER_IS_BETTER = "LOWER_IS_BETTER"


@strawberry.enum
class MetricCategory(Enum):
    """Who writes the scores."""

    SYSTEM = "SYSTEM"
    GRADER = "GRADER"
    USER = "USER"


@strawberry.enum
class ScoreSource(Enum):
    """Who wrote a score."""

    GRADER = "GRADER"
    USER = "USER"
    SYSTEM = "SYSTEM"
    UNKNOWN = "UNKNOWN"


async def _project(root: strawberry.Parent[Metric], info: Info) -> object | None:
    """Its project, if the caller may see it."""
    row = await info.context.services.projects.find(info.context.caller, str(root.project_id))
    return None if row is None else object_of(info, "Project", row)


async def _projects(
    root: strawberry.Parent[Metric],
    info: Info,
    filter: ProjectFilter | None = None,
) -> list[object]:
    """The same as a list; an archived one only if the filter wants it."""
    row = await info.context.services.projects.find(info.context.caller, str(root.project_id))
    is_archived = filter is not None and bool(filter.is_archived)
    if row is None or (row.archived_at is not None) is not is_archived:
        return []
    return [object_of(info, "Project", row)]


class _Measure(Protocol):
    """What metrics have in both their types."""

    id: uuid.UUID
    project_id: uuid.UUID


async def _grader(root: strawberry.Parent[_Measure], info: Info) -> object | None:
    """What writes its scores, if a grader does."""
    found = await info.context.services.graders.of_metric(info.context.caller, root.project_id, root.id)
    return None if found is None else object_of(info, "Grader", found)


async def _activity(
    root: strawberry.Parent[_Measure], info: Info, timerange: TimeRange | None = None
) -> MetricActivity:
    """How much was scored in it. Without a time range: ever, and no trend."""
    found = await info.context.services.scores.count(info.context.caller, Subject(root.id), span_of(timerange))
    return MetricActivity(scores=ActivityOutput(value=found.value, trend=found.trend))


@strawberry.type
class Metric:
    """Something that completions of a project are measured by."""

    project_id: strawberry.Private[uuid.UUID]
    id: uuid.UUID
    key: str | None
    name: str
    kind: MetricKind
    description: str
    scoring_type: MetricScoringType
    unit: str | None
    category: MetricCategory
    created_at: Timestamp
    deleted_at: Timestamp | None
    has_direct_scores: bool
    has_comparison_scores: bool
    grader: object | None = strawberry.field(resolver=_grader, graphql_type=GRADER)
    activity: MetricActivity = strawberry.field(resolver=_activity)
    project: object | None = strawberry.field(resolver=_project, graphql_type=PROJECT)
    projects: list[object] = strawberry.field(resolver=_projects, graphql_type=PROJECTS)

    @classmethod
    def of(cls, info: MetricInfo) -> Metric:
        """From its row."""
        row = info.row
        return cls(
            project_id=row.project_id,
            id=row.id,
            key=None if row.deleted_at is not None else row.key,
            name=row.name,
            kind=MetricKind(row.kind),
            description=row.description,
            scoring_type=MetricScoringType(row.scoring_type),
            unit=row.unit,
            category=MetricCategory(row.category),
            created_at=Timestamp(row.created_at),
            deleted_at=None if row.deleted_at is None else Timestamp(row.deleted_at),
            has_direct_scores=info.has_scores,
            has_comparison_scores=info.has_comparisons,
        )


@strawberry.type
class MetricWithContext(MetricFigures):
    """A metric, as its project shows it, or as one of the models in it does."""

    id: uuid.UUID
    key: str | None
    name: str
    kind: MetricKind
    scoring_type: MetricScoringType
    description: str
    unit: str | None
    category: MetricCategory
    created_at: DateTimeText
    deleted_at: Timestamp | None
    project_id: strawberry.Private[uuid.UUID]
    has_direct_scores: bool
    has_comparison_scores: bool
    grader: object | None = strawberry.field(resolver=_grader, graphql_type=GRADER)

    @classmethod
    def of(cls, info: MetricInfo, model_id: uuid.UUID | None = None) -> MetricWithContext:
        """From its row. model_id: the model whose completions count in its figures; None: any."""
        row = info.row
        return cls(
            subject=Subject(row.id, model_id),
            id=row.id,
            key=row.key,
            name=row.name,
            kind=MetricKind(row.kind),
            scoring_type=MetricScoringType(row.scoring_type),
            description=row.description,
            unit=row.unit,
            category=MetricCategory(row.category),
            created_at=rfc3339(row.created_at),
            deleted_at=None if row.deleted_at is None else Timestamp(row.deleted_at),
            project_id=row.project_id,
            has_direct_scores=info.has_scores,
            has_comparison_scores=info.has_comparisons,
        )


async def _scorer(root: strawberry.Parent[DirectScore], info: Info) -> object | None:
    """Who gave it, unless a grader or the system did."""
    row = await info.context.services.surroundings.creator(root.created_by_id)
    return None if row is None else object_of(info, "User", row)


@strawberry.type
class DirectScore:
    """A value that a completion got."""

    id: uuid.UUID
    value: float
    metric: Metric | None
    reason: str | None
    details: str | None
    created_at: Timestamp
    source: ScoreSource
    created_by_id: strawberry.Private[uuid.UUID | None]
    created_by_user: object | None = strawberry.field(resolver=_scorer, graphql_type=USER)

    @classmethod
    def of(cls, score: ScoreInfo) -> DirectScore:
        """From its row and its metric's."""
        row: ScoreRow = score.row
        return cls(
            id=row.id,
            value=row.value,
            metric=Metric.of(score.metric),
            reason=row.reason,
            details=row.details,
            created_at=Timestamp(row.created_at),
            source=ScoreSource(row.source),
            created_by_id=row.created_by,
        )


@strawberry.input
class MetricCreate:
    """A new metric."""

    name: str
    kind: MetricKind
    key: Key | None = None
    scoring_type: MetricScoringType = MetricScoringType.HIGHER_IS_BETTER
    description: str | None = None
    unit: str | None = None

    def new(self, category: str = "USER") -> NewMetric:
        """For services."""
        return NewMetric(
            name=self.name,
            kind=self.kind.value,
            key=self.key,
            scoring_type=self.scoring_type.value,
            description=self.description or "",
            unit=self.unit,
            category=category,
        )


@strawberry.input
class MetricUpdate:
    """What shall be different about a metric."""

    name: str | None = None
    description: str | None = None
    scoring_type: MetricScoringType | None = None


@strawberry.input
class MetricFilter:
    """Which metrics are wanted."""

    categories: list[MetricCategory] | None = None

    @property
    def wish(self) -> list[str] | None:
        """For services."""
        return None if self.categories is None else [item.value for item in self.categories]


@strawberry.input
class ScoreAddInput:
    """A score. value: a number, or true or false."""

    value: JSON
    details: str | None = None
    reason: str | None = None


@strawberry.type
class MetricQuery:
    """Metrics."""

    @strawberry.field
    async def metrics(self, info: Info, filter: MetricFilter | None = None) -> list[Metric]:
        """Those of every project whose metrics the caller may see."""
        registry = info.context.services.metrics_registry
        found = await registry.all(info.context.caller, None if filter is None else filter.wish)
        return [Metric.of(item) for item in found]

    @strawberry.field
    async def metric(self, info: Info, project_id_or_key: IdOrKey, metric_id_or_key: IdOrKey) -> Metric | None:
        """One of them."""
        registry = info.context.services.metrics_registry
        found = await registry.find(info.context.caller, project_id_or_key, metric_id_or_key)
        return None if found is None else Metric.of(found)


@strawberry.type
class MetricMutation:
    """Making metrics, and scoring in them."""

    @strawberry.mutation
    async def create_metric(self, info: Info, project: IdOrKey, input: MetricCreate) -> Metric:
        """A metric of a project."""
        registry = info.context.services.metrics_registry
        return Metric.of(await registry.create(info.context.caller, project, input.new()))

    @strawberry.mutation
    async def update_metric(self, info: Info, project: IdOrKey, metric: IdOrKey, input: MetricUpdate) -> Metric:
        """Change how a metric is called and read."""
        scoring_type = None if input.scoring_type is None else input.scoring_type.value
        change = MetricChange(input.name, input.description, scoring_type)
        registry = info.context.services.metrics_registry
        return Metric.of(await registry.update(info.context.caller, project, metric, change))

    @strawberry.mutation
    async def delete_metric(self, info: Info, project: IdOrKey, metric: IdOrKey) -> bool:
        """Show a metric and its scores no longer; one that a grader or an A/B test uses is refused."""
        await info.context.services.metrics_registry.delete(info.context.caller, project, metric)
        return True

    @strawberry.mutation
    async def add_direct_score(
        self, info: Info, completion_id: uuid.UUID, metric_id: IdOrKey, input: ScoreAddInput
    ) -> DirectScore:
        """A score of a completion."""
        new = NewScore(metric=metric_id, value=input.value, reason=input.reason, details=input.details)
        return DirectScore.of(await info.context.services.feedback.score(info.context.caller, completion_id, new))
