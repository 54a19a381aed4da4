"""How much was asked and scored, in a project, of a model, or of a model in a project."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion
from harmonia.server.db.metrics import DirectScore, Metric
from harmonia.server.db.projects import Project
from harmonia.server.services.access import Caller, visible_projects
from harmonia.server.services.figures.buckets import Span
from harmonia.server.services.interactions.writer import InteractionWriter
from harmonia.server.services.metrics import IS_THERE, SYSTEM

PERMISSION = "interaction:read"


@dataclass(frozen=True, slots=True)
class Count:
    """How many there were, and in as long a time right before; before: None without such a time."""

    value: int
    before: int | None = None

    @property
    def trend(self) -> float | None:
        """By which share it grew: 0.1 for a tenth more; None if there was nothing before."""
        return None if not self.before else (self.value - self.before) / self.before


@dataclass(frozen=True, slots=True)
class Activity:
    """Interactions, whoever answered, and scores of people and graders.

    per_second: interactions; None of a time without an end or a beginning.
    """

    interactions: Count
    scores: Count
    per_second: float | None


class ActivityFigures:
    """Counts what the caller may see with `interaction:read`."""

    def __init__(self, database: Database, writer: InteractionWriter) -> None:
        self._database = database
        self._writer = writer

    async def of(
        self, caller: Caller, span: Span, *, project_id: uuid.UUID | None = None, model_id: uuid.UUID | None = None
    ) -> Activity | None:
        """Of a project, of a model in every project, or of both; None for who may not see its interactions."""
        await self._writer.settled()
        async with self._database.read() as session:
            allowed = visible_projects(caller, PERMISSION)
            if project_id is not None:
                allowed = allowed.where(Project.id == project_id)
                if (await session.execute(allowed.limit(1))).first() is None:
                    return None
            projects = allowed if project_id is None else select(Project.id).where(Project.id == project_id)
            interactions, scores = await _counts(session, projects, span, model_id)
            before = span.before
            earlier = (None, None) if before is None else await _counts(session, projects, before, model_id)
        per_second = None if span.length_ms is None else interactions / (span.length_ms / 1000)
        return Activity(Count(interactions, earlier[0]), Count(scores, earlier[1]), per_second)


async def _counts(
    session: AsyncSession, projects: Select[uuid.UUID], span: Span, model_id: uuid.UUID | None
) -> tuple[int, int]:
    """Interactions, and scores that this server did not measure itself."""
    asked = select(func.count()).where(Completion.project_id.in_(projects), *span.has(Completion.created_at))
    metrics = select(Metric.id).where(Metric.project_id.in_(projects), Metric.category != SYSTEM, IS_THERE)
    scored = select(func.count(DirectScore.metric_id)).where(
        DirectScore.metric_id.in_(metrics), *span.has(DirectScore.created_at)
    )
    if model_id is not None:
        asked = asked.where(Completion.model_id == model_id)
        scored = scored.join(Completion, Completion.id == DirectScore.completion_id)
        scored = scored.where(Completion.model_id == model_id)
    return (await session.execute(asked)).scalar_one(), (await session.execute(scored)).scalar_one()
