"""Where training runs report, in batches, and where their curves are read."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from harmonia.errors import InvalidRequestError
from harmonia.server.rest.body import read_body
from harmonia.server.rest.callers import KnownCaller, Server
from harmonia.server.services.jobs.monitoring import NewCategorical, NewTable, Point

MAX_TABLE_BYTES = 64 * 1024 * 1024
"""Clients cut large tables into parts of 20 MB by their own measure, which as JSON may be larger."""

router = APIRouter(prefix="/monitoring", tags=["monitoring"])

T = TypeVar("T", bound=msgspec.Struct)

to_json = msgspec.json.Encoder().encode


class RunRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A new run, or with `resume` the one of this name."""

    name: str
    config: dict[str, Any] | None = None
    resume: bool = False


class RunStatus(msgspec.Struct, forbid_unknown_fields=True):
    """How a run ended."""

    status: Literal["running", "finished", "failed", "crashed"]


class Metric(msgspec.Struct, forbid_unknown_fields=True):
    """One value of one curve."""

    name: str
    value: float
    step: int
    timestamp: datetime


class MetricBatch(msgspec.Struct, forbid_unknown_fields=True):
    """Values since the last batch."""

    metrics: list[Metric]


class Column(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A column of a table."""

    name: str
    type: str | None = None


class TableRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A table, or with `append` more rows of it."""

    name: str
    columns: list[Column]
    data: list[list[Any]]
    step: int = 0
    append: bool = False


class Series(msgspec.Struct, forbid_unknown_fields=True):
    """Further values over the same labels."""

    name: str
    values: list[float]


class CategoricalRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A distribution over labels."""

    name: str
    labels: list[str]
    values: list[float]
    step: int = 0
    series: list[Series] = []


@router.post("/projects/{project}/monitoring_runs", status_code=201)
async def start_run(request: Request, project: str, services: Server, caller: KnownCaller) -> Response:
    """Begin a run. A name that is taken is refused unless `resume` is set."""
    body = await _read(request, RunRequest, services)
    run = await services.monitoring.start_run(caller, project, body.name, body.config or {}, resume=body.resume)
    return _json({"id": str(run.id), "project_id": str(run.project_id), "name": run.name, "status": run.status}, 201)


@router.patch("/monitoring_runs/{run_id}")
async def end_run(request: Request, run_id: uuid.UUID, services: Server, caller: KnownCaller) -> Response:
    """Say how a run ended."""
    body = await _read(request, RunStatus, services)
    run = await services.monitoring.update(caller, run_id, status=body.status)
    return _json({"id": str(run.id), "status": run.status})


@router.post("/monitoring_runs/{run_id}/metrics", status_code=204)
async def log_metrics(request: Request, run_id: uuid.UUID, services: Server, caller: KnownCaller) -> Response:
    """Add values to curves."""
    body = await _read(request, MetricBatch, services)
    points = [Point(item.name, item.value, item.step, _milliseconds(item.timestamp)) for item in body.metrics]
    await services.monitoring.log(caller, run_id, points)
    return Response(status_code=204)


@router.post("/monitoring_runs/{run_id}/tables", status_code=201)
async def log_table(request: Request, run_id: uuid.UUID, services: Server, caller: KnownCaller) -> Response:
    """Keep a table, or more rows of it."""
    body = await _read(request, TableRequest, services, MAX_TABLE_BYTES)
    columns = [msgspec.to_builtins(column) for column in body.columns]
    table = await services.monitoring.log_table(
        caller, run_id, NewTable(body.name, columns, body.data, body.step, body.append)
    )
    return _json({"id": str(table.id), "row_count": table.row_count}, 201)


@router.post("/monitoring_runs/{run_id}/categorical", status_code=201)
async def log_categorical(request: Request, run_id: uuid.UUID, services: Server, caller: KnownCaller) -> Response:
    """Keep a distribution."""
    body = await _read(request, CategoricalRequest, services)
    series = [msgspec.to_builtins(item) for item in body.series]
    row = await services.monitoring.log_categorical(
        caller, run_id, NewCategorical(body.name, body.labels, body.values, body.step, series)
    )
    return _json({"id": str(row.id)}, 201)


@router.get("/monitoring_runs/{run_id}/metrics")
async def read_metrics(run_id: uuid.UUID, services: Server, caller: KnownCaller, name: str | None = None) -> Response:
    """The curves of a run by name, each a list of `[step, value, milliseconds]`."""
    curves: dict[str, list[tuple[int, float, int]]] = {}
    for point in await services.monitoring.points(caller, run_id, name):
        curves.setdefault(point.name, []).append((point.step, point.value, point.logged_at))
    return _json({"metrics": curves})


@router.get("/tables/{table_id}")
async def read_table(table_id: uuid.UUID, services: Server, caller: KnownCaller) -> Response:
    """A table with its rows."""
    table, rows = await services.monitoring.rows(caller, table_id)
    return _json({"name": table.name, "step": table.step, "columns": table.columns, "data": rows})


async def _read(request: Request, model: type[T], services: Server, max_bytes: int = 0) -> T:
    """The body. Python writes NaN and Infinity as words that JSON does not have, so the refusal says so."""
    try:
        return await read_body(request, model, max(max_bytes, services.config.server.max_body_bytes))
    except InvalidRequestError as error:
        if not isinstance(error.__cause__, msgspec.DecodeError) or isinstance(error.__cause__, msgspec.ValidationError):
            raise
        raise InvalidRequestError(
            f"{error.message}; if values are NaN or Infinity, leave them out: JSON has no word for them"
        ) from error


def _milliseconds(moment: datetime) -> int:
    """Since 1970; a moment without a zone is UTC."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1000)


def _json(body: object, status: int = 200) -> Response:
    return Response(to_json(body), status, media_type="application/json")
