"""Completions with everything that belongs to them, read for a whole page at a time."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.server.db.interactions import Completion, CompletionLabel
from harmonia.server.db.metrics import Comparison, DirectScore, Metric
from harmonia.server.db.models import Model
from harmonia.server.db.projects import Project
from harmonia.server.services.metrics import IS_THERE, SYSTEM, MetricInfo, metric_infos


@dataclass(frozen=True, slots=True)
class ScoreInfo:
    """A score and its metric."""

    row: DirectScore
    metric: MetricInfo


@dataclass(frozen=True, slots=True)
class BriefCompletion:
    """A completion and its model, if that is still there."""

    row: Completion
    model: Model | None


@dataclass(frozen=True, slots=True)
class ComparisonInfo:
    """A comparison, its metric, and what was compared."""

    row: Comparison
    project: Project
    metric: MetricInfo
    preferred: BriefCompletion
    other: BriefCompletion


@dataclass(frozen=True, slots=True)
class CompletionInfo:
    """A completion with all that is known of it."""

    row: Completion
    model: Model | None
    labels: list[CompletionLabel]
    scores: list[ScoreInfo]
    comparisons: list[ComparisonInfo]


async def details(session: AsyncSession, rows: Sequence[Completion]) -> list[CompletionInfo]:
    """The same completions in the same order; the number of queries does not depend on how many they are."""
    ids = [row.id for row in rows]
    if not ids:
        return []
    labels = await _labels(session, ids)
    of_scores = select(DirectScore).join(Metric, Metric.id == DirectScore.metric_id).where(IS_THERE)
    # What the server measured is in the timings and the usage.
    of_scores = of_scores.where(DirectScore.source != SYSTEM, DirectScore.completion_id.in_(ids)).order_by(
        DirectScore.created_at
    )
    scores = list((await session.execute(of_scores)).scalars())
    of_comparisons = select(Comparison).join(Metric, Metric.id == Comparison.metric_id).where(IS_THERE)
    of_comparisons = of_comparisons.where(or_(Comparison.preferred_id.in_(ids), Comparison.other_id.in_(ids)))
    comparisons = list((await session.execute(of_comparisons.order_by(Comparison.created_at))).scalars())
    compared = await _compared(session, rows, comparisons)
    metrics = await _metrics(session, [*(row.metric_id for row in scores), *(row.metric_id for row in comparisons)])
    models = await _models(session, [*rows, *compared.values()])
    project = await session.get(Project, rows[0].project_id) if comparisons else None

    def brief(completion_id: uuid.UUID) -> BriefCompletion:
        row = compared[completion_id]
        return BriefCompletion(row, models.get(row.model_id))

    scores_of: dict[uuid.UUID, list[ScoreInfo]] = defaultdict(list)
    for score in scores:
        scores_of[score.completion_id].append(ScoreInfo(score, metrics[score.metric_id]))
    comparisons_of: dict[uuid.UUID, list[ComparisonInfo]] = defaultdict(list)
    for row in comparisons:
        assert project is not None
        info = ComparisonInfo(row, project, metrics[row.metric_id], brief(row.preferred_id), brief(row.other_id))
        comparisons_of[row.preferred_id].append(info)
        comparisons_of[row.other_id].append(info)
    return [
        CompletionInfo(row, models.get(row.model_id), labels[row.id], scores_of[row.id], comparisons_of[row.id])
        for row in rows
    ]


async def _labels(session: AsyncSession, ids: list[uuid.UUID]) -> dict[uuid.UUID, list[CompletionLabel]]:
    query = select(CompletionLabel).where(CompletionLabel.completion_id.in_(ids)).order_by(CompletionLabel.key)
    found: dict[uuid.UUID, list[CompletionLabel]] = defaultdict(list)
    for label in (await session.execute(query)).scalars():
        found[label.completion_id].append(label)
    return found


async def _compared(
    session: AsyncSession, rows: Sequence[Completion], comparisons: Sequence[Comparison]
) -> dict[uuid.UUID, Completion]:
    """The completions of comparisons, by id."""
    known = {row.id: row for row in rows}
    named = {row_id for row in comparisons for row_id in (row.preferred_id, row.other_id)}
    missing = named - known.keys()
    if missing:
        query = select(Completion).where(Completion.id.in_(missing))
        known |= {row.id: row for row in (await session.execute(query)).scalars()}
    return known


async def _metrics(session: AsyncSession, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, MetricInfo]:
    wanted = set(ids)
    return {info.row.id: info for info in await metric_infos(session, Metric.id.in_(wanted))} if wanted else {}


async def _models(session: AsyncSession, rows: Iterable[Completion]) -> dict[uuid.UUID | None, Model]:
    wanted = {row.model_id for row in rows if row.model_id is not None}
    if not wanted:
        return {}
    return {model.id: model for model in (await session.execute(select(Model).where(Model.id.in_(wanted)))).scalars()}
