"""Figures for charts: how much was asked and scored, and how scores moved."""

from __future__ import annotations

import uuid
from enum import Enum

import strawberry

from harmonia.server.graphql.context import Info
from harmonia.server.graphql.lazy import MODEL, object_of
from harmonia.server.graphql.paging import TimeRange, span_of
from harmonia.server.graphql.scalars import Timestamp
from harmonia.server.services.figures import activity as service
from harmonia.server.services.figures.buckets import WHOLE
from harmonia.server.services.figures.scores import Series, SeriesWish, Subject, Trend


@strawberry.enum
class MetricAggregation(Enum):
    """What becomes of several scores."""

    AVERAGE = "AVERAGE"
    SUM = "SUM"
    COUNT = "COUNT"


@strawberry.enum
class TimeseriesInterval(Enum):
    """What a chart counts by. Weeks begin on Mondays; MILLENNIUM: the whole time as one."""

    HOUR = "HOUR"
    DAY = "DAY"
    WEEK = "WEEK"
    MONTH = "MONTH"
    QUARTER = "QUARTER"
    YEAR = "YEAR"
    MILLENNIUM = "MILLENNIUM"


@strawberry.type
class InteractionOutput:
    """Interactions. trend: by which share there are more than in as long a time before; null if there were none."""

    value: int
    per_second: float | None
    trend: float | None


@strawberry.type
class ActivityOutput:
    """Scores of people and graders. trend: by which share there are more than in as long a time before."""

    value: int
    trend: float | None


@strawberry.type
class Activity:
    """How much was asked and scored. Without a time range: ever, and no trend."""

    interactions: InteractionOutput
    scores: ActivityOutput

    @classmethod
    def of(cls, found: service.Activity) -> Activity:
        """From what was counted."""
        asked, scored = found.interactions, found.scores
        return cls(
            interactions=InteractionOutput(value=asked.value, per_second=found.per_second, trend=asked.trend),
            scores=ActivityOutput(value=scored.value, trend=scored.trend),
        )


async def activity(
    info: Info,
    timerange: TimeRange | None,
    *,
    project_id: uuid.UUID | None = None,
    model_id: uuid.UUID | None = None,
) -> Activity | None:
    """Of a project, of a model, or of both; null for who may not see the project's interactions."""
    figures, span = info.context.services.activity, span_of(timerange)
    found = await figures.of(info.context.caller, span, project_id=project_id, model_id=model_id)
    return None if found is None else Activity.of(found)


@strawberry.type
class MetricActivity:
    """How much was scored in a metric."""

    scores: ActivityOutput


@strawberry.type
class TrendResult:
    """The scores of a time against those of as long a time before. trend: a share; null if it was 0 before."""

    trend: float | None
    previous: float
    current: float

    @classmethod
    def of(cls, found: Trend) -> TrendResult:
        """From what was added up."""
        return cls(trend=found.change, previous=found.previous, current=found.current)


@strawberry.input
class MetricTrendInput:
    """Without a time range: the last thirty days against the thirty before."""

    timerange: TimeRange | None = None
    aggregation: MetricAggregation = MetricAggregation.AVERAGE


@strawberry.input
class TimeseriesInput:
    """A chart. timezone: a name such as `Europe/Paris`, UTC if there is none; timerange: null for all scores."""

    interval: TimeseriesInterval
    timerange: TimeRange | None = None
    timezone: str | None = None
    by_model: bool = False
    aggregation: MetricAggregation = MetricAggregation.AVERAGE

    @property
    def wish(self) -> SeriesWish:
        """For services."""
        whole = self.interval is TimeseriesInterval.MILLENNIUM
        return SeriesWish(
            span=span_of(self.timerange),
            unit=WHOLE if whole else self.interval.value,
            timezone=self.timezone,
            by_model=self.by_model,
        )


async def _model(root: strawberry.Parent[Timeseries], info: Info) -> object | None:
    """Whose scores these are; null if all count."""
    return None if root.series.model is None else object_of(info, "Model", root.series.model)


@strawberry.type
class Timeseries:
    """Scores by time: the starts of the buckets, empty ones included, and what is in each.

    values: null for the average of no scores.
    """

    series: strawberry.Private[Series]
    time_buckets: list[Timestamp]
    count: list[int]
    values: list[float | None]
    aggregation: MetricAggregation
    model: object | None = strawberry.field(resolver=_model, graphql_type=MODEL)

    @classmethod
    def of(cls, series: Series, aggregation: MetricAggregation) -> Timeseries:
        """From what was added up."""
        return cls(
            series=series,
            time_buckets=[Timestamp(start) for start in series.starts],
            count=[part.count for part in series.scored],
            values=[part.value(aggregation.value) for part in series.scored],
            aggregation=aggregation,
        )


@strawberry.type
class MetricFigures:
    """What every metric of a project can be asked for charts."""

    subject: strawberry.Private[Subject]

    @strawberry.field
    async def score_count(self, info: Info, timerange: TimeRange | None = None) -> int:
        """How many scores it has."""
        figures = info.context.services.scores
        return (await figures.count(info.context.caller, self.subject, span_of(timerange))).value

    @strawberry.field
    async def comparison_count(self, info: Info, timerange: TimeRange | None = None) -> int:
        """How many comparisons it has."""
        figures = info.context.services.scores
        return await figures.comparisons(info.context.caller, self.subject, span_of(timerange))

    @strawberry.field
    async def trend(self, info: Info, input: MetricTrendInput | None = None) -> TrendResult | None:
        """How its scores moved; null if one of the two times has none."""
        wish = input or MetricTrendInput()
        found = await info.context.services.scores.trend(
            info.context.caller, self.subject, span_of(wish.timerange), wish.aggregation.value
        )
        return None if found is None else TrendResult.of(found)

    @strawberry.field
    async def timeseries(self, info: Info, input: TimeseriesInput) -> list[Timeseries]:
        """Its scores by time: one series, or one for each model."""
        found = await info.context.services.scores.series(info.context.caller, self.subject, input.wish)
        return [Timeseries.of(series, input.aggregation) for series in found]
