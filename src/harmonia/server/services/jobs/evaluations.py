"""What evaluations of jobs found: statistics for each model and grader."""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.graders import Grader
from harmonia.server.db.jobs import Job, JobArtifact
from harmonia.server.db.metrics import Metric
from harmonia.server.db.models import Model, ModelService
from harmonia.server.services.metrics import SCALAR, MetricInfo, NewMetric, add_metric, metric_infos
from harmonia.server.services.models.deployments import Bound

MAX_LINE_BYTES = 64 << 20
"""Of one sample of an evaluation."""


class Statistics(msgspec.Struct):
    """Of the grades that one model got from one grader."""

    model_key: str
    grader_key: str
    count: int = 0
    sum: float = 0.0
    sum_squared: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    def add(self, value: float) -> None:
        """One more grade."""
        self.count += 1
        self.sum += value
        self.sum_squared += value * value
        self.min, self.max = min(self.min, value), max(self.max, value)

    @property
    def mean(self) -> float:
        """Of the grades."""
        return self.sum / self.count

    @property
    def stddev(self) -> float:
        """Of all grades, not an estimate from a sample."""
        return math.sqrt(max(0.0, self.sum_squared / self.count - self.mean**2))


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Statistics, and what they are about."""

    statistics: Statistics
    service: Bound
    metric: MetricInfo


class _Grade(msgspec.Struct):
    value: float
    grader_key: str


class _New(msgspec.Struct):
    model_key: str = ""


class _Interaction(msgspec.Struct):
    New: _New


class _Sample(msgspec.Struct):
    interaction: _Interaction
    grades: list[_Grade]


async def summarize(blocks: AsyncIterator[bytes]) -> list[dict[str, Any]]:
    """Statistics of a file of samples, one per line. `InvalidRequestError` names a line that is none."""
    found: dict[tuple[str, str], Statistics] = {}
    decoder = msgspec.json.Decoder(_Sample)
    number = 0
    async for line in _lines(blocks):
        number += 1
        try:
            sample = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise InvalidRequestError(f"line {number} of the evaluation is no sample: {error}", field="file") from error
        model_key = sample.interaction.New.model_key
        for grade in sample.grades:
            key = (model_key, grade.grader_key)
            found.setdefault(key, Statistics(*key)).add(grade.value)
    return [msgspec.to_builtins(each) for each in found.values()]


async def _lines(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise InvalidRequestError(f"a line of the evaluation exceeds {MAX_LINE_BYTES} bytes", field="file")
        for line in filter(None, lines):
            yield line
    if rest:
        yield rest


async def add_missing_metrics(session: AsyncSession, project_id: uuid.UUID, found: list[dict[str, Any]]) -> None:
    """Make a metric for each grader that the project does not know yet, such as one that a recipe made."""
    graders = {each["grader_key"] for each in found}
    known = await _metrics(session, project_id, graders)
    for key in sorted(graders - known.keys()):
        await add_metric(session, project_id, NewMetric(name=key, key=key, kind=SCALAR, category="GRADER"))


async def results(database: Database, artifact: JobArtifact) -> list[EvaluationResult]:
    """What an evaluation found, as far as the project has the models and the metrics that it is about."""
    statistics = list(_read(artifact.results))
    async with database.read() as session:
        project_id = (await session.execute(select(Job.project_id).where(Job.id == artifact.job_id))).scalar_one()
        if project_id is None:
            return []
        services = await _services(session, project_id, {each.model_key for each in statistics})
        metrics = await _metrics(session, project_id, {each.grader_key for each in statistics})
    return [
        EvaluationResult(each, services[each.model_key], metrics[each.grader_key])
        for each in statistics
        if each.model_key in services and each.grader_key in metrics
    ]


def _read(rows: list[Any]) -> Iterator[Statistics]:
    for row in rows:
        yield msgspec.convert(row, Statistics)


async def _services(session: AsyncSession, project_id: uuid.UUID, keys: set[str]) -> dict[str, Bound]:
    query = (
        select(ModelService, Model)
        .join(Model, Model.id == ModelService.model_id)
        .where(ModelService.project_id == project_id, ModelService.key.in_(keys))
    )
    return {service.key: Bound(service, model) for service, model in (await session.execute(query)).all()}


async def _metrics(session: AsyncSession, project_id: uuid.UUID, graders: set[str]) -> dict[str, MetricInfo]:
    """By the grader's key: the metric of the grader, else the metric of the same key."""
    query = select(Grader.key, Grader.metric_id).where(Grader.project_id == project_id, Grader.key.in_(graders))
    by_grader = {row.key: row.metric_id for row in (await session.execute(query)).all()}
    wanted = Metric.id.in_(by_grader.values()) | Metric.key.in_(graders - by_grader.keys())
    infos = await metric_infos(session, Metric.project_id == project_id, wanted)
    by_id, by_key = {info.row.id: info for info in infos}, {info.row.key: info for info in infos}
    found = {key: by_id.get(by_grader[key]) if key in by_grader else by_key.get(key) for key in graders}
    return {key: info for key, info in found.items() if info is not None}
