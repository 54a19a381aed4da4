"""Runs that report while they train."""

from __future__ import annotations

import uuid
from enum import Enum
from typing import Any

import strawberry
from strawberry.scalars import JSON

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db import monitoring as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.scalars import IdOrKey, Timestamp
from harmonia.server.services.jobs.monitoring import NewCategorical, NewTable


@strawberry.enum(name="MonitoringRunStatusGql")
class MonitoringRunStatus(Enum):
    """How a run stands."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CRASHED = "crashed"


@strawberry.type
class MonitoringTable:
    """A table at one step; its rows come by REST."""

    id: uuid.UUID
    run_id: uuid.UUID
    name: str
    step: int
    columns: JSON
    row_count: int
    created_at: Timestamp

    @classmethod
    def of(cls, row: db.MonitoringTable) -> MonitoringTable:
        """From its row."""
        return cls(
            id=row.id,
            run_id=row.run_id,
            name=row.name,
            step=row.step,
            columns=JSON(row.columns),
            row_count=row.row_count,
            created_at=Timestamp(row.created_at),
        )


@strawberry.type
class MonitoringCategorical:
    """A distribution over labels at one step."""

    id: uuid.UUID
    run_id: uuid.UUID
    name: str
    step: int
    labels: list[str]
    values: list[float]
    series: JSON
    created_at: Timestamp

    @classmethod
    def of(cls, row: db.MonitoringCategorical) -> MonitoringCategorical:
        """From its row."""
        return cls(
            id=row.id,
            run_id=row.run_id,
            name=row.name,
            step=row.step,
            labels=row.labels,
            values=row.values,
            series=JSON(row.series),
            created_at=Timestamp(row.created_at),
        )


@strawberry.type
class MonitoringRun:
    """One run that reports."""

    id: uuid.UUID
    project_id: uuid.UUID
    name: str
    config: JSON
    status: MonitoringRunStatus
    started_at: Timestamp
    ended_at: Timestamp | None
    last_metric_at: Timestamp | None
    created_at: Timestamp

    @classmethod
    def of(cls, row: db.MonitoringRun) -> MonitoringRun:
        """From its row."""
        return cls(
            id=row.id,
            project_id=row.project_id,
            name=row.name,
            config=JSON(row.config),
            status=MonitoringRunStatus(row.status),
            started_at=Timestamp(row.created_at),
            ended_at=None if row.ended_at is None else Timestamp(row.ended_at),
            last_metric_at=None if row.last_metric_at is None else Timestamp(row.last_metric_at),
            created_at=Timestamp(row.created_at),
        )

    @strawberry.field
    async def tables(self, info: Info) -> list[MonitoringTable]:
        """Its tables."""
        monitoring = info.context.services.monitoring
        rows = await monitoring.tables(info.context.caller, str(self.project_id), [self.id])
        return [MonitoringTable.of(row) for row in rows]

    @strawberry.field
    async def categorical(self, info: Info) -> list[MonitoringCategorical]:
        """Its distributions."""
        monitoring = info.context.services.monitoring
        rows = await monitoring.categorical(info.context.caller, str(self.project_id), [self.id])
        return [MonitoringCategorical.of(row) for row in rows]


@strawberry.input
class CreateMonitoringRunInput:
    """A new run."""

    name: str
    config: JSON | None = None
    resume: bool = False


@strawberry.input
class UpdateMonitoringRunInput:
    """What shall change of a run."""

    status: MonitoringRunStatus | None = None
    name: str | None = None


@strawberry.input
class TableColumnDefInput:
    """A column."""

    name: str
    type: str | None = None


@strawberry.input
class LogMonitoringTableInput:
    """A table; one of the same name and step is replaced."""

    name: str
    columns: list[TableColumnDefInput]
    data: list[list[JSON]]
    step: int = 0


@strawberry.input
class CategoricalSeriesInputGql:
    """Further values over the same labels."""

    name: str
    values: list[float]


@strawberry.input
class LogMonitoringCategoricalInput:
    """A distribution; one of the same name and step is replaced."""

    name: str
    labels: list[str]
    values: list[float]
    step: int = 0
    series: list[CategoricalSeriesInputGql] = strawberry.field(default_factory=list)


@strawberry.type
class MonitoringQuery:
    """What runs reported."""

    @strawberry.field
    async def monitoring_runs(
        self, info: Info, project: IdOrKey, limit: int = 100, offset: int = 0
    ) -> list[MonitoringRun]:
        """Runs of a project, newest first."""
        rows = await info.context.services.monitoring.runs(info.context.caller, project, limit, offset)
        return [MonitoringRun.of(row) for row in rows]

    @strawberry.field
    async def monitoring_run(self, info: Info, project: IdOrKey, run_id: uuid.UUID) -> MonitoringRun | None:
        """One of them."""
        row = await info.context.services.monitoring.find(info.context.caller, project, run_id)
        return None if row is None else MonitoringRun.of(row)

    @strawberry.field
    async def monitoring_tables(self, info: Info, project: IdOrKey, run_ids: list[uuid.UUID]) -> list[MonitoringTable]:
        """The tables of some runs."""
        rows = await info.context.services.monitoring.tables(info.context.caller, project, run_ids)
        return [MonitoringTable.of(row) for row in rows]

    @strawberry.field
    async def monitoring_categorical(
        self, info: Info, project: IdOrKey, run_ids: list[uuid.UUID]
    ) -> list[MonitoringCategorical]:
        """The distributions of some runs."""
        rows = await info.context.services.monitoring.categorical(info.context.caller, project, run_ids)
        return [MonitoringCategorical.of(row) for row in rows]


@strawberry.type
class MonitoringMutation:
    """Reporting, and forgetting what was reported."""

    @strawberry.mutation
    async def create_monitoring_run(
        self, info: Info, project: IdOrKey, input: CreateMonitoringRunInput
    ) -> MonitoringRun:
        """A run, or the one of this name again."""
        config = _settings(input.config)
        run = await info.context.services.monitoring.start_run(
            info.context.caller, project, input.name, config, resume=input.resume
        )
        return MonitoringRun.of(run)

    @strawberry.mutation
    async def update_monitoring_run(
        self, info: Info, project: IdOrKey, run_id: uuid.UUID, input: UpdateMonitoringRunInput
    ) -> MonitoringRun:
        """End a run, or name it anew."""
        await _require(info, project, run_id)
        status = None if input.status is None else input.status.value
        run = await info.context.services.monitoring.update(info.context.caller, run_id, status=status, name=input.name)
        return MonitoringRun.of(run)

    @strawberry.mutation
    async def delete_monitoring_run(self, info: Info, project: IdOrKey, run_id: uuid.UUID) -> bool:
        """Forget a run."""
        await info.context.services.monitoring.delete(info.context.caller, project, [run_id])
        return True

    @strawberry.mutation
    async def delete_monitoring_runs(self, info: Info, project: IdOrKey, run_ids: list[uuid.UUID]) -> bool:
        """Forget several, or none if one of them does not exist."""
        await info.context.services.monitoring.delete(info.context.caller, project, run_ids)
        return True

    @strawberry.mutation
    async def log_monitoring_table(
        self, info: Info, project: IdOrKey, run_id: uuid.UUID, input: LogMonitoringTableInput
    ) -> MonitoringTable:
        """Keep a table."""
        await _require(info, project, run_id)
        columns: list[dict[str, Any]] = [
            {"name": column.name} if column.type is None else {"name": column.name, "type": column.type}
            for column in input.columns
        ]
        new = NewTable(input.name, columns, input.data, input.step)
        return MonitoringTable.of(await info.context.services.monitoring.log_table(info.context.caller, run_id, new))

    @strawberry.mutation
    async def log_monitoring_categorical(
        self, info: Info, project: IdOrKey, run_id: uuid.UUID, input: LogMonitoringCategoricalInput
    ) -> MonitoringCategorical:
        """Keep a distribution."""
        await _require(info, project, run_id)
        series: list[dict[str, Any]] = [{"name": item.name, "values": item.values} for item in input.series]
        new = NewCategorical(input.name, input.labels, input.values, input.step, series)
        row = await info.context.services.monitoring.log_categorical(info.context.caller, run_id, new)
        return MonitoringCategorical.of(row)


async def _require(info: Info, project: IdOrKey, run_id: uuid.UUID) -> None:
    if await info.context.services.monitoring.find(info.context.caller, project, run_id) is None:
        raise EntityNotFoundError(f"Monitoring run '{run_id}' does not exist", entity="monitoring run")


def _settings(config: object) -> dict[str, Any]:
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise InvalidRequestError(f"config: an object, got {config!r}", field="config")
    return config
