"""What this server measures of every answer: metrics of each project that nobody has to make or fill."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from harmonia.log import get_logger
from harmonia.server.db.database import Database
from harmonia.server.db.metrics import Metric
from harmonia.server.services.audit import record
from harmonia.server.services.interactions.interaction import Interaction
from harmonia.server.services.metrics import IS_THERE, LOWER_IS_BETTER, SCALAR, SYSTEM, NewMetric, add_metric

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Measured:
    new: NewMetric
    value: Callable[[Interaction], float | None]


def _measured(key: str, name: str, unit: str, value: Callable[[Interaction], float | None]) -> _Measured:
    new = NewMetric(name=name, key=key, kind=SCALAR, scoring_type=LOWER_IS_BETTER, unit=unit, category=SYSTEM)
    return _Measured(new, value)


def _of(numbers: Mapping[str, Any] | None, name: str) -> float | None:
    value = (numbers or {}).get(name)
    return float(value) if isinstance(value, int | float) else None


MEASURED = (
    _measured("ttft", "Time to first token", "ms", lambda item: _of(item.timings, "ttft_ms")),
    _measured("latency", "Latency", "ms", lambda item: _of(item.timings, "total_ms")),
    _measured("prompt_tokens", "Prompt tokens", "tokens", lambda item: _of(item.usage, "prompt_tokens")),
    _measured("completion_tokens", "Completion tokens", "tokens", lambda item: _of(item.usage, "completion_tokens")),
)


class SystemMetrics:
    """Scores of answers as they are written. A project gets the metrics with its first answer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[uuid.UUID, dict[str, uuid.UUID]] = {}

    async def scores(self, items: Iterable[Interaction]) -> list[dict[str, Any]]:
        """The rows of `DirectScore` that belong to interactions of this server."""
        rows = []
        for item in items:
            if item.source != "LIVE" or (item.timings is None and item.usage is None):
                continue
            metrics = self._known.get(item.project_id)
            if metrics is None:
                metrics = self._known[item.project_id] = await self._metrics(item.project_id)
            for measured in MEASURED:
                metric_id, value = metrics.get(measured.new.key or ""), measured.value(item)
                if metric_id is not None and value is not None:
                    rows.append(_row(item, metric_id, value))
        return rows

    async def _metrics(self, project_id: uuid.UUID) -> dict[str, uuid.UUID]:
        """Those of a project by key. They are made once: what somebody deleted does not come back."""
        of_project = select(Metric.key, Metric.id).where(Metric.project_id == project_id)
        async with self._database.begin() as session:
            of_system = of_project.where(Metric.category == SYSTEM)
            if (await session.execute(of_system.limit(1))).first() is None:
                taken = set((await session.execute(of_project.with_only_columns(Metric.key))).scalars())
                for measured in MEASURED:
                    if measured.new.key in taken:
                        log.warning("project %s has a metric %r of its own", project_id, measured.new.key)
                        continue
                    await add_metric(session, project_id, measured.new)
                    record(session, None, "metric.create", f"metric/{measured.new.key}", project=str(project_id))
            found = (await session.execute(of_system.where(IS_THERE))).all()
        return {row.key: row.id for row in found}


def _row(item: Interaction, metric_id: uuid.UUID, value: float) -> dict[str, Any]:
    return {
        "id": uuid.uuid4(),
        "created_at": item.created_at,
        "completion_id": item.id,
        "metric_id": metric_id,
        "value": value,
        "source": SYSTEM,
    }
