"""The scores of a metric: by time, against the time before, and of each model.

The database adds up from one index, `ix_direct_scores_figures`, and looks at completions only where models matter.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from harmonia.errors import EntityNotFoundError
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion
from harmonia.server.db.metrics import Comparison, DirectScore, Metric
from harmonia.server.db.models import Model, ModelService
from harmonia.server.services.access import Caller, visible_projects
from harmonia.server.services.figures.activity import Count
from harmonia.server.services.figures.buckets import ALWAYS, WHOLE, Buckets, Span, buckets_of
from harmonia.server.services.interactions.writer import InteractionWriter
from harmonia.server.services.metrics import IS_THERE, MetricInfo, metric_infos

AVERAGE, SUM, COUNT = "AVERAGE", "SUM", "COUNT"
PERMISSION = "metric:read"
TREND_MS = 30 * 86_400_000
"""What a trend looks at where nobody says: thirty days against the thirty before."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A metric, and the model whose completions count; None: any."""

    metric_id: uuid.UUID
    model_id: uuid.UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesWish:
    """Which scores are wanted, and in what units of time. by_model: a series for each model instead of one."""

    span: Span = ALWAYS
    unit: str = WHOLE
    timezone: str | None = None
    by_model: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """How many scores, and their sum."""

    count: int = 0
    sum: float = 0.0

    def __add__(self, other: Scored) -> Scored:
        return Scored(self.count + other.count, self.sum + other.sum)

    def value(self, aggregation: str) -> float | None:
        """As AVERAGE (None of no scores), SUM or COUNT."""
        if aggregation == AVERAGE:
            return self.sum / self.count if self.count else None
        return self.sum if aggregation == SUM else float(self.count)


@dataclass(frozen=True, slots=True)
class Series:
    """Scores by bucket. model: None where all count. starts: of the buckets, UTC milliseconds."""

    model: Model | None = None
    starts: tuple[int, ...] = ()
    scored: list[Scored] = field(default_factory=list)
    """As many as there are starts."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A value, and the one of the time before."""

    previous: float
    current: float

    @property
    def change(self) -> float | None:
        """By which share of the previous one it grew; None if that was 0."""
        return (self.current - self.previous) / abs(self.previous) if self.previous else None


class ScoreFigures:
    """Reads the scores of metrics where the caller has `metric:read`; others do not exist for them."""

    def __init__(self, database: Database, writer: InteractionWriter) -> None:
        self._database = database
        self._writer = writer

    async def series(self, caller: Caller, subject: Subject, wish: SeriesWish) -> list[Series]:
        """By time. Without a beginning, from the first score on; nothing of a metric that has none."""
        await self._writer.settled()
        async with self._database.read() as session:
            await _require(session, caller, subject)
            buckets = await _buckets(session, subject, wish)
            if buckets is None:
                return []
            place = buckets.place(DirectScore.created_at).label("place")
            query = _of(subject, wish.span, place, *_SUMS, by_model=wish.by_model).group_by(place)
            found: dict[uuid.UUID | None, list[Scored]] = defaultdict(lambda: [Scored()] * len(buckets.starts))
            for number, count, total, *model_id in (await session.execute(query)).all():
                found[model_id[0] if model_id else None][number] = Scored(count, total)
            if not wish.by_model:
                return [Series(None, buckets.starts, found[None])]
            models = select(Model).where(Model.id.in_(found.keys() - {None})).order_by(Model.key)
            return [
                Series(model, buckets.starts, found[model.id]) for model in (await session.execute(models)).scalars()
            ]

    async def count(self, caller: Caller, subject: Subject, span: Span) -> Count:
        """How many scores there are, and were in the time before."""
        await self._writer.settled()
        async with self._database.read() as session:
            await _require(session, caller, subject)
            value = (await _scored(session, subject, span)).count
            before = None if span.before is None else (await _scored(session, subject, span.before)).count
        return Count(value, before)

    async def comparisons(self, caller: Caller, subject: Subject, span: Span) -> int:
        """How often two completions were compared, of which a model gave one."""
        query = select(func.count()).select_from(Comparison)
        query = query.where(Comparison.metric_id == subject.metric_id, *span.has(Comparison.created_at))
        if subject.model_id is not None:
            preferred, other = aliased(Completion), aliased(Completion)
            query = query.join(preferred, preferred.id == Comparison.preferred_id)
            query = query.join(other, other.id == Comparison.other_id)
            query = query.where(or_(preferred.model_id == subject.model_id, other.model_id == subject.model_id))
        async with self._database.read() as session:
            await _require(session, caller, subject)
            return (await session.execute(query)).scalar_one()

    async def trend(self, caller: Caller, subject: Subject, span: Span, aggregation: str) -> Trend | None:
        """Against as long a time right before; None if one of them has no scores to average."""
        until = now_ms() + 1 if span.until is None else span.until
        now = Span(until - TREND_MS if span.since is None else span.since, until)
        assert now.before is not None
        await self._writer.settled()
        async with self._database.read() as session:
            await _require(session, caller, subject)
            current = (await _scored(session, subject, now)).value(aggregation)
            previous = (await _scored(session, subject, now.before)).value(aggregation)
        return None if current is None or previous is None else Trend(previous, current)

    async def of_model(
        self, caller: Caller, model_id: uuid.UUID, project_id: uuid.UUID | None = None
    ) -> list[MetricInfo]:
        """The metrics of the projects that have a model, or had it; only of one of them if it is named."""
        having = select(ModelService.project_id).where(ModelService.model_id == model_id)
        if project_id is not None:
            having = having.where(ModelService.project_id == project_id)
        seen = Metric.project_id.in_(visible_projects(caller, PERMISSION))
        async with self._database.read() as session:
            return await metric_infos(session, Metric.project_id.in_(having), seen, IS_THERE)


_SUMS = (func.count(DirectScore.metric_id), func.coalesce(func.sum(DirectScore.value), 0.0))


async def _require(session: AsyncSession, caller: Caller, subject: Subject) -> None:
    seen = Metric.project_id.in_(visible_projects(caller, PERMISSION))
    if (await session.execute(select(Metric.id).where(Metric.id == subject.metric_id, seen))).first() is None:
        raise EntityNotFoundError(f"Metric {str(subject.metric_id)!r} does not exist", entity="metric")


def _of(subject: Subject, span: Span, *columns: ColumnElement[Any], by_model: bool = False) -> Select[*tuple[Any, ...]]:
    """The scores of a subject; by_model: in groups, with the model as the last column."""
    query: Select[*tuple[Any, ...]] = select(*columns).where(
        DirectScore.metric_id == subject.metric_id, *span.has(DirectScore.created_at)
    )
    if by_model or subject.model_id is not None:
        query = query.join(Completion, Completion.id == DirectScore.completion_id)
    if subject.model_id is not None:
        query = query.where(Completion.model_id == subject.model_id)
    return query.add_columns(Completion.model_id).group_by(Completion.model_id) if by_model else query


async def _scored(session: AsyncSession, subject: Subject, span: Span) -> Scored:
    row = (await session.execute(_of(subject, span, *_SUMS))).one()
    return Scored(*row)


async def _buckets(session: AsyncSession, subject: Subject, wish: SeriesWish) -> Buckets | None:
    """None if there are no scores from which it could begin."""
    since = wish.span.since
    if since is None:
        since = (await session.execute(_of(subject, wish.span, func.min(DirectScore.created_at)))).scalar()
        if since is None:
            return None
    until = now_ms() + 1 if wish.span.until is None else wish.span.until
    return buckets_of(Span(since, max(until, since + 1)), wish.unit, wish.timezone)
