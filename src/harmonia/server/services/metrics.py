"""The metrics of a project: what its completions are measured by."""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.abtests import AbCampaign
from harmonia.server.db.base import MAX_KEY, now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.graders import Grader
from harmonia.server.db.metrics import Comparison, DirectScore, Metric
from harmonia.server.db.projects import Project
from harmonia.server.services.access import Caller, by_id_or_key, require_in_project, visible_projects
from harmonia.server.services.audit import record
from harmonia.server.services.keys import checked_key, key_from

SCALAR, BOOL = "SCALAR", "BOOL"
HIGHER_IS_BETTER, LOWER_IS_BETTER = "HIGHER_IS_BETTER", "LOWER_IS_BETTER"
SYSTEM = "SYSTEM"
"""The category of metrics that this server fills itself, and the source of their scores."""
MAX_UNIT = 64
_READ = "metric:read"
IS_THERE = Metric.deleted_at.is_(None)
"""Metrics that were not deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMetric:
    """A metric to make. key: None makes one of the name."""

    name: str
    kind: str
    key: str | None = None
    scoring_type: str = HIGHER_IS_BETTER
    description: str = ""
    unit: str | None = None
    category: str = "USER"


@dataclass(frozen=True, slots=True)
class MetricChange:
    """What shall be different; None stays as it is."""

    name: str | None = None
    description: str | None = None
    scoring_type: str | None = None


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric, and what it was used for."""

    row: Metric
    has_scores: bool
    has_comparisons: bool


class MetricsRegistry:
    """Makes and finds metrics."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, caller: Caller, project: str, new: NewMetric) -> MetricInfo:
        """A metric of a project; needs `metric:create` there."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "metric:create")
            row = await add_metric(session, access.project_id, new)
            record(session, caller, "metric.create", f"metric/{row.key}", project=access.project_key)
            return MetricInfo(row, has_scores=False, has_comparisons=False)

    async def update(self, caller: Caller, project: str, metric: str, change: MetricChange) -> MetricInfo:
        """Change how a metric is called and read; needs `metric:create` there."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "metric:create")
            row = await metric_named(session, access.project_id, metric)
            if change.name is not None:
                row.name = _checked_name(change.name)
            if change.description is not None:
                row.description = change.description
            if change.scoring_type is not None:
                row.scoring_type = change.scoring_type
            record(session, caller, "metric.update", f"metric/{row.key}", project=access.project_key)
            await session.flush()
            return (await metric_infos(session, Metric.id == row.id))[0]

    async def delete(self, caller: Caller, project: str, metric: str) -> None:
        """Take no more scores in a metric, and show neither it nor those that it has any longer.

        Needs `metric:create`. A metric that a grader writes or an A/B test measures by is refused.
        """
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "metric:create")
            row = await metric_named(session, access.project_id, metric)
            await _require_unused(session, row)
            record(session, caller, "metric.delete", f"metric/{row.key}", project=access.project_key)
            row.key, row.deleted_at = f"~{row.id}", now_ms()

    async def all(self, caller: Caller, categories: Collection[str] | None = None) -> list[MetricInfo]:
        """Those of every project whose metrics the caller may see."""
        async with self._database.read() as session:
            wanted = [Metric.project_id.in_(visible_projects(caller, _READ)), IS_THERE, *_in(categories)]
            return await metric_infos(session, *wanted)

    async def of_project(
        self, caller: Caller, project_id: uuid.UUID, categories: Collection[str] | None = None
    ) -> list[MetricInfo]:
        """Those of one project; none if the caller may not see them."""
        async with self._database.read() as session:
            wanted = [Metric.project_id == project_id, Metric.project_id.in_(visible_projects(caller, _READ))]
            return await metric_infos(session, *wanted, IS_THERE, *_in(categories))

    async def find(self, caller: Caller, project: str, metric: str) -> MetricInfo | None:
        """One by id or key; None if there is none that the caller may see."""
        async with self._database.read() as session:
            infos = await metric_infos(
                session,
                IS_THERE,
                by_id_or_key(Metric.id, Metric.key, metric),
                Metric.project_id.in_(select(Project.id).where(by_id_or_key(Project.id, Project.key, project))),
                Metric.project_id.in_(visible_projects(caller, _READ)),
            )
            return infos[0] if infos else None


async def add_metric(session: AsyncSession, project_id: uuid.UUID, new: NewMetric) -> Metric:
    """A metric's row inside a transaction: for graders and data sets, which bring metrics of their own."""
    name = _checked_name(new.name)
    key = checked_key(new.key) if new.key else key_from(name)
    if new.unit is not None and len(new.unit) > MAX_UNIT:
        raise InvalidRequestError(f"a unit has at most {MAX_UNIT} characters, got {len(new.unit)}", field="unit")
    taken = select(Metric.id).where(Metric.project_id == project_id, Metric.key == key)
    if (await session.execute(taken)).first() is not None:
        raise InvalidRequestError(f"the key {key!r} is taken by another metric here; choose another", field="key")
    row = Metric(
        project_id=project_id,
        key=key,
        name=name,
        kind=new.kind,
        scoring_type=new.scoring_type,
        category=new.category,
        description=new.description,
        unit=new.unit,
    )
    session.add(row)
    await session.flush()
    return row


async def _require_unused(session: AsyncSession, metric: Metric) -> None:
    grader = (await session.execute(select(Grader.key).where(Grader.metric_id == metric.id))).scalar()
    if grader is not None:
        raise InvalidRequestError(
            f"the grader {grader!r} writes its scores into {metric.key!r}; delete the grader first", field="metric"
        )
    running = select(AbCampaign.key).where(AbCampaign.metric_id == metric.id, AbCampaign.ended_at.is_(None))
    campaign = (await session.execute(running)).scalar()
    if campaign is not None:
        raise InvalidRequestError(
            f"the A/B test {campaign!r} measures by {metric.key!r}; cancel it first", field="metric"
        )


async def metric_named(session: AsyncSession, project_id: uuid.UUID, metric: str) -> Metric:
    """A metric of a project by id or key, inside a transaction; `EntityNotFoundError` if there is none."""
    query = select(Metric).where(Metric.project_id == project_id, IS_THERE, by_id_or_key(Metric.id, Metric.key, metric))
    row = (await session.execute(query)).scalar_one_or_none()
    if row is None:
        raise EntityNotFoundError(f"Metric {metric!r} does not exist", entity="metric")
    return row


async def metric_infos(session: AsyncSession, *wanted: ColumnElement[bool]) -> list[MetricInfo]:
    """Metrics with what they were used for, oldest first, in one query."""
    has_scores = exists().where(DirectScore.metric_id == Metric.id)
    has_comparisons = exists().where(Comparison.metric_id == Metric.id)
    query = select(Metric, has_scores, has_comparisons).where(*wanted).order_by(Metric.created_at, Metric.key)
    return [MetricInfo(row, bool(scores), bool(compared)) for row, scores, compared in await session.execute(query)]


def checked_value(metric: Metric, value: object, field: str = "value") -> float:
    """A value as the metric takes it: 0, 1, true or false of a BOOL metric, any finite number of a SCALAR one."""
    if metric.kind == BOOL:
        if isinstance(value, bool | int | float) and value in (0, 1):
            return float(value)
        raise InvalidRequestError(
            f"{field}: the metric {metric.key!r} takes 0, 1, true and false, got {value!r}", field=field
        )
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise InvalidRequestError(f"{field}: the metric {metric.key!r} takes finite numbers, got {value!r}", field=field)


def _checked_name(name: str) -> str:
    if not name.strip() or len(name) > MAX_KEY:
        raise InvalidRequestError(f"a name has 1 to {MAX_KEY} characters, got {name[:80]!r}", field="name")
    return name


def _in(categories: Collection[str] | None) -> list[ColumnElement[bool]]:
    return [] if categories is None else [Metric.category.in_(categories)]
