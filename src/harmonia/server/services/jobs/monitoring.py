"""Curves, tables and distributions that training runs report, and reading them again."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.base import MAX_KEY, now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.monitoring import (
    MonitoringCategorical,
    MonitoringPoint,
    MonitoringRun,
    MonitoringTable,
    MonitoringTableRows,
)
from harmonia.server.services.access import Caller, require_in_project
from harmonia.server.services.audit import record

RUNNING = "running"
ENDED = ("finished", "failed", "crashed")
MAX_STEP = 2**53
"""Beyond this, numbers in JSON lose their last digit."""
_PAGE = 10_000

Logged = TypeVar("Logged", MonitoringTable, MonitoringCategorical)


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one curve; logged_at: UTC milliseconds."""

    name: str
    value: float
    step: int
    logged_at: int


@dataclass(frozen=True, slots=True)
class NewTable:
    """A table, or more rows of one. append: False replaces what was logged under this name at this step."""

    name: str
    columns: list[dict[str, Any]]
    rows: list[list[Any]]
    step: int = 0
    append: bool = False


@dataclass(frozen=True, slots=True)
class NewCategorical:
    """A distribution: as many values as labels, in each of the series too."""

    name: str
    labels: list[str]
    values: list[float]
    step: int = 0
    series: list[dict[str, Any]] = field(default_factory=list)


class Monitoring:
    """Everything about runs that report. Whoever may adapt models in the project writes, its readers read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ------------------------------------------------------------------------------------------ runs

    async def start_run(
        self, caller: Caller, project: str, name: str, config: dict[str, Any], *, resume: bool = False
    ) -> MonitoringRun:
        """A run. resume: go on with the one of this name if there is one; its settings are replaced if any come."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:adapt")
            _check_name(name)
            query = select(MonitoringRun).where(
                MonitoringRun.project_id == access.project_id, MonitoringRun.name == name
            )
            run = (await session.execute(query)).scalar_one_or_none()
            if run is None:
                run = MonitoringRun(project_id=access.project_id, name=name, config=config)
                session.add(run)
                record(session, caller, "monitoring.start", f"monitoring/{name}")
            elif not resume:
                raise InvalidRequestError(
                    f"a run {name!r} exists already; choose another name, or go on with it with resume=true",
                    field="name",
                )
            else:
                run.status, run.ended_at, run.config = RUNNING, None, config or run.config
            await session.flush()
            return run

    async def update(
        self, caller: Caller, run_id: uuid.UUID, *, status: str | None = None, name: str | None = None
    ) -> MonitoringRun:
        """End a run, or name it anew; None: as it is."""
        if status is not None and status not in (RUNNING, *ENDED):
            raise InvalidRequestError(
                f"{status!r} is no status; there are {', '.join((RUNNING, *ENDED))}", field="status"
            )
        async with self._database.begin() as session:
            run = await _writable(session, caller, run_id)
            if name is not None and name != run.name:
                _check_name(name)
                taken = select(MonitoringRun.id).where(
                    MonitoringRun.project_id == run.project_id, MonitoringRun.name == name
                )
                if (await session.execute(taken)).first() is not None:
                    raise InvalidRequestError(f"a run {name!r} exists already; choose another name", field="name")
                run.name = name
            if status is not None:
                run.status, run.ended_at = status, now_ms() if status in ENDED else None
            return run

    async def delete(self, caller: Caller, project: str, run_ids: Sequence[uuid.UUID]) -> None:
        """Forget runs and everything that they reported; all of them or none."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:adapt")
            for run_id in run_ids:
                run = await session.get(MonitoringRun, run_id)
                if run is None or run.project_id != access.project_id:
                    raise _unknown(run_id)
                record(session, caller, "monitoring.delete", f"monitoring/{run.name}")
                await session.execute(delete(MonitoringRun).where(MonitoringRun.id == run_id))

    async def runs(self, caller: Caller, project: str, limit: int = 100, offset: int = 0) -> list[MonitoringRun]:
        """Runs of a project, newest first."""
        _check_page(limit, offset)
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, "project:read")
            query = select(MonitoringRun).where(MonitoringRun.project_id == access.project_id)
            order = query.order_by(MonitoringRun.created_at.desc(), MonitoringRun.name)
            return list((await session.execute(order.limit(limit).offset(offset))).scalars())

    async def find(self, caller: Caller, project: str, run_id: uuid.UUID) -> MonitoringRun | None:
        """One run of a project."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, "project:read")
            run = await session.get(MonitoringRun, run_id)
            return run if run is not None and run.project_id == access.project_id else None

    # ------------------------------------------------------------------------------------------ logging

    async def log(self, caller: Caller, run_id: uuid.UUID, points: Sequence[Point]) -> None:
        """Add values to curves. Values that came before, as after a lost answer, are not added twice."""
        for index, point in enumerate(points):
            _check_name(point.name, f"metrics[{index}].name")
            _check_step(point.step)
            _check_number(point.value, f"metrics[{index}].value", f"{point.name!r} at step {point.step}")
        if not points:
            return
        async with self._database.begin() as session:
            run = await _reporting(session, caller, run_id)
            known = await _known_points(session, run.id, points)
            fresh = dict.fromkeys(point for point in points if (point.name, point.step, point.logged_at) not in known)
            session.add_all(
                MonitoringPoint(
                    run_id=run.id, name=point.name, step=point.step, value=point.value, logged_at=point.logged_at
                )
                for point in fresh
            )
            run.last_metric_at = now_ms()

    async def log_table(self, caller: Caller, run_id: uuid.UUID, new: NewTable) -> MonitoringTable:
        """Keep a table, or more rows of one."""
        _check_name(new.name)
        _check_step(new.step)
        _check_rows(new)
        async with self._database.begin() as session:
            run = await _reporting(session, caller, run_id)
            table = await _at_step(session, MonitoringTable, run.id, new.name, new.step)
            if table is not None and not new.append:
                await session.delete(table)
                await session.flush()
                table = None
            if table is None:
                table = MonitoringTable(run_id=run.id, name=new.name, step=new.step, columns=new.columns, row_count=0)
                session.add(table)
                await session.flush()
            elif [item["name"] for item in table.columns] != [item["name"] for item in new.columns]:
                raise InvalidRequestError(
                    f"the columns differ from those of the table {new.name!r} at step {new.step}; send the same, or "
                    "append=false to replace it",
                    field="columns",
                )
            if new.rows:
                session.add(MonitoringTableRows(table_id=table.id, position=table.row_count, rows=new.rows))
                table.row_count += len(new.rows)
            run.last_metric_at = now_ms()
            return table

    async def log_categorical(self, caller: Caller, run_id: uuid.UUID, new: NewCategorical) -> MonitoringCategorical:
        """Keep a distribution; an earlier one of this name and step is replaced."""
        _check_name(new.name)
        _check_step(new.step)
        _check_values(new)
        async with self._database.begin() as session:
            run = await _reporting(session, caller, run_id)
            row = await _at_step(session, MonitoringCategorical, run.id, new.name, new.step)
            if row is None:
                row = MonitoringCategorical(run_id=run.id, name=new.name, step=new.step)
                session.add(row)
            row.labels, row.values, row.series = new.labels, new.values, new.series
            await session.flush()
            run.last_metric_at = now_ms()
            return row

    # ------------------------------------------------------------------------------------------ reading

    async def points(self, caller: Caller, run_id: uuid.UUID, name: str | None = None) -> list[MonitoringPoint]:
        """The curves of a run, or one of them, by name and step."""
        async with self._database.read() as session:
            run = await _of_caller(session, caller, run_id, "project:read")
            query = select(MonitoringPoint).where(MonitoringPoint.run_id == run.id)
            if name is not None:
                query = query.where(MonitoringPoint.name == name)
            order = (MonitoringPoint.name, MonitoringPoint.step, MonitoringPoint.id)
            return list((await session.execute(query.order_by(*order))).scalars())

    async def rows(self, caller: Caller, table_id: uuid.UUID) -> tuple[MonitoringTable, list[Any]]:
        """A table with its rows."""
        async with self._database.read() as session:
            table = await session.get(MonitoringTable, table_id)
            if table is None:
                raise EntityNotFoundError(f"Table '{table_id}' does not exist", entity="table")
            await _of_caller(session, caller, table.run_id, "project:read")
            query = select(MonitoringTableRows).where(MonitoringTableRows.table_id == table_id)
            parts = (await session.execute(query.order_by(MonitoringTableRows.position))).scalars()
            return table, [row for part in parts for row in part.rows]

    async def tables(self, caller: Caller, project: str, run_ids: Sequence[uuid.UUID]) -> list[MonitoringTable]:
        """The tables of runs of a project, without their rows."""
        return await self._logged(caller, project, run_ids, MonitoringTable)

    async def categorical(
        self, caller: Caller, project: str, run_ids: Sequence[uuid.UUID]
    ) -> list[MonitoringCategorical]:
        """The distributions of runs of a project."""
        return await self._logged(caller, project, run_ids, MonitoringCategorical)

    async def _logged(
        self, caller: Caller, project: str, run_ids: Sequence[uuid.UUID], table: type[Logged]
    ) -> list[Logged]:
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, "project:read")
            query = (
                select(table)
                .join(MonitoringRun, MonitoringRun.id == table.run_id)
                .where(MonitoringRun.project_id == access.project_id, table.run_id.in_(run_ids))
                .order_by(table.name, table.step)
            )
            return list((await session.execute(query)).scalars())


# ---------------------------------------------------------------------------------------------- finding


async def _of_caller(session: AsyncSession, caller: Caller, run_id: uuid.UUID, permission: str) -> MonitoringRun:
    run = await session.get(MonitoringRun, run_id)
    if run is None:
        raise _unknown(run_id)
    await require_in_project(session, caller, str(run.project_id), permission)
    return run


async def _writable(session: AsyncSession, caller: Caller, run_id: uuid.UUID) -> MonitoringRun:
    return await _of_caller(session, caller, run_id, "project:adapt")


async def _reporting(session: AsyncSession, caller: Caller, run_id: uuid.UUID) -> MonitoringRun:
    run = await _writable(session, caller, run_id)
    if run.status in ENDED:
        raise InvalidRequestError(f"the run {run.name!r} is {run.status}; begin it again with resume=true to log more")
    return run


async def _at_step(
    session: AsyncSession, table: type[Logged], run_id: uuid.UUID, name: str, step: int
) -> Logged | None:
    query = select(table).where(table.run_id == run_id, table.name == name, table.step == step)
    found: Logged | None = (await session.execute(query)).scalar_one_or_none()
    return found


async def _known_points(session: AsyncSession, run_id: uuid.UUID, points: Sequence[Point]) -> set[tuple[str, int, int]]:
    """Which of the points are there already. Names are looked up one by one: a list of them has no bound in SQL."""
    known: set[tuple[str, int, int]] = set()
    for name in {point.name for point in points}:
        steps = [point.step for point in points if point.name == name]
        query = select(MonitoringPoint.step, MonitoringPoint.logged_at).where(
            MonitoringPoint.run_id == run_id,
            MonitoringPoint.name == name,
            MonitoringPoint.step.between(min(steps), max(steps)),
        )
        known.update((name, row.step, row.logged_at) for row in await session.execute(query))
    return known


def _unknown(run_id: uuid.UUID) -> EntityNotFoundError:
    return EntityNotFoundError(f"Monitoring run '{run_id}' does not exist", entity="monitoring run")


# ---------------------------------------------------------------------------------------------- checking


def _check_name(name: str, where: str = "name") -> None:
    if not name.strip() or len(name) > MAX_KEY:
        raise InvalidRequestError(f"{where}: 1 to {MAX_KEY} characters, got {name!r}", field=where)


def _check_step(step: int) -> None:
    if not 0 <= step <= MAX_STEP:
        raise InvalidRequestError(f"step: 0 to 2^53, got {step}", field="step")


def _check_number(value: float, where: str, what: str) -> None:
    if not math.isfinite(value):
        raise InvalidRequestError(f"{where}: {what} is {value}, which no curve can show; leave it out", field=where)


def _check_page(limit: int, offset: int) -> None:
    if not 1 <= limit <= _PAGE:
        raise InvalidRequestError(f"limit: 1 to {_PAGE}, got {limit}", field="limit")
    if offset < 0:
        raise InvalidRequestError(f"offset: 0 or more, got {offset}", field="offset")


def _check_rows(new: NewTable) -> None:
    if not new.columns:
        raise InvalidRequestError("columns: a table has at least one", field="columns")
    for index, row in enumerate(new.rows):
        if len(row) != len(new.columns):
            raise InvalidRequestError(
                f"data[{index}]: {len(row)} values for {len(new.columns)} columns", field=f"data[{index}]"
            )


def _check_values(new: NewCategorical) -> None:
    for where, values in (
        ("values", new.values),
        *((f"series {item['name']!r}", item["values"]) for item in new.series),
    ):
        if len(values) != len(new.labels):
            raise InvalidRequestError(f"{where}: {len(values)} values for {len(new.labels)} labels", field="values")
        for label, value in zip(new.labels, values, strict=True):
            _check_number(value, "values", f"{label!r} in {new.name!r}")
