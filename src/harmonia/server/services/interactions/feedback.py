"""What people say about completions and sessions: scores, comparisons and outcomes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion
from harmonia.server.db.metrics import Comparison, DirectScore, Metric, Outcome
from harmonia.server.services.abtests.abtests import ABTests
from harmonia.server.services.access import Caller, ProjectAccess, require_in_project
from harmonia.server.services.interactions.details import ScoreInfo
from harmonia.server.services.interactions.interaction import Interaction, rows_of
from harmonia.server.services.interactions.writer import InteractionWriter
from harmonia.server.services.metrics import SYSTEM, checked_value, metric_infos, metric_named
from harmonia.server.services.models.deployments import named_service


@dataclass(frozen=True, slots=True, kw_only=True)
class NewScore:
    """A value in a metric, by id or key."""

    metric: str
    value: object
    reason: str | None = None
    details: str | None = None
    user: str | None = None
    """Who said it, if not the caller."""
    created_at: int | None = None
    """UTC milliseconds; None: now."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion that was never recorded: its text, and the model (by id or key) that gave it."""

    text: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewComparison:
    """Which of two completions, recorded or not, was better. tie: `good` or `bad` if neither was."""

    metric: str
    preferred: uuid.UUID | Answer
    other: uuid.UUID | Answer
    messages: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """The prompt of those that were not recorded."""
    tie: str | None = None
    user: str | None = None


class Feedback:
    """Takes feedback down."""

    def __init__(self, database: Database, writer: InteractionWriter, ab_tests: ABTests) -> None:
        self._database = database
        self._writer = writer
        self._ab_tests = ab_tests

    async def score(self, caller: Caller, completion_id: uuid.UUID, new: NewScore) -> ScoreInfo:
        """A score of a completion; needs `metric:log` in its project."""
        await self._writer.settled([completion_id])
        async with self._database.begin() as session:
            completion = await _completion(session, completion_id)
            access = await require_in_project(session, caller, str(completion.project_id), "metric:log")
            row = await add_score(session, access, completion.id, new)
            await session.flush()
            if completion.ab_campaign_id is not None:
                await self._ab_tests.scored(session, completion.ab_campaign_id, row.metric_id)
            return ScoreInfo(row, (await metric_infos(session, Metric.id == row.metric_id))[0])

    async def compare(self, caller: Caller, project: str, new: NewComparison) -> Comparison:
        """A comparison of two completions of one prompt; needs `metric:log`."""
        await self._writer.settled([item for item in (new.preferred, new.other) if isinstance(item, uuid.UUID)])
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "metric:log")
            metric = await metric_named(session, access.project_id, new.metric)
            preferred = await _compared(session, access, new.preferred, new, "preferred_completion")
            other = await _compared(session, access, new.other, new, "other_completion")
            if preferred.id == other.id:
                raise InvalidRequestError(
                    f"other_completion: {other.id} is the preferred completion too; give two", field="other_completion"
                )
            if preferred.prompt_hash != other.prompt_hash:
                raise InvalidRequestError(
                    f"completions {preferred.id} and {other.id} answer different prompts; compare answers to one",
                    field="other_completion",
                )
            row = Comparison(
                project_id=access.project_id,
                metric_id=metric.id,
                preferred_id=preferred.id,
                other_id=other.id,
                tie=new.tie,
                user=new.user,
                created_by=caller.user_id,
            )
            session.add(row)
            await session.flush()
            await self._ab_tests.compared(session, metric.id, preferred.model_service_id, other.model_service_id)
            return row

    async def outcome(
        self, caller: Caller, session_id: uuid.UUID, new: NewScore, project: str | None = None
    ) -> Outcome:
        """A value of a session; needs `metric:log`. project: by id or key; None: the one that has the session."""
        await self._writer.settled()
        async with self._database.begin() as session:
            query = select(Completion.project_id).where(Completion.session_id == session_id).limit(1)
            if project is not None:
                access = await require_in_project(session, caller, project, "metric:log")
                query = query.where(Completion.project_id == access.project_id)
            project_id = (await session.execute(query)).scalar_one_or_none()
            if project_id is None:
                raise EntityNotFoundError(f"Session {session_id} does not exist", entity="session")
            access = await require_in_project(session, caller, str(project_id), "metric:log")
            metric = await metric_named(session, access.project_id, new.metric)
            row = Outcome(
                project_id=access.project_id,
                metric_id=metric.id,
                session_id=session_id,
                value=checked_value(metric, new.value),
                reason=new.reason,
                details=new.details,
                user=new.user,
                created_by=caller.user_id,
            )
            session.add(row)
            return row


async def add_score(
    session: AsyncSession, access: ProjectAccess, completion_id: uuid.UUID, new: NewScore
) -> DirectScore:
    """A score's row inside a transaction."""
    metric = await metric_named(session, access.project_id, new.metric)
    if metric.category == SYSTEM:
        raise InvalidRequestError(
            f"the metric {metric.key!r} is measured by this server; log into one of your own", field="metric"
        )
    row = DirectScore(
        completion_id=completion_id,
        metric_id=metric.id,
        value=checked_value(metric, new.value),
        reason=new.reason,
        details=new.details,
        user=new.user,
        created_by=access.caller.user_id,
        created_at=now_ms() if new.created_at is None else new.created_at,
    )
    session.add(row)
    return row


async def _completion(session: AsyncSession, completion_id: uuid.UUID) -> Completion:
    found = await session.get(Completion, completion_id)
    if found is None:
        raise EntityNotFoundError(
            f"Completion {completion_id} does not exist; an answer has its id in choices[].completion_id",
            entity="completion",
        )
    return found


async def _compared(
    session: AsyncSession, access: ProjectAccess, item: uuid.UUID | Answer, new: NewComparison, name: str
) -> Completion:
    """One side of a comparison; a text is recorded first."""
    if isinstance(item, uuid.UUID):
        found = await _completion(session, item)
        if found.project_id != access.project_id:
            raise EntityNotFoundError(f"Completion {item} does not exist", entity="completion")
        return found
    if not new.messages:
        raise InvalidRequestError(f"{name} is a text; give the prompt that it answers as 'messages'", field="messages")
    service = (await named_service(session, access.project_id, item.model)).service
    row, _ = rows_of(
        Interaction(
            project_id=access.project_id,
            messages=new.messages,
            completion=item.text,
            model_key=service.key,
            model_service_id=service.id,
            model_id=service.model_id,
            user=new.user,
            created_by=access.caller.user_id,
            source="OFFLINE",
        )
    )
    completion = Completion(**row)
    session.add(completion)
    await session.flush()
    return completion
