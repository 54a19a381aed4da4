"""Graders at work outside of recipes: on interactions that were recorded, and on conversations that are brought."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.client.grades import Grade
from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.server.db.database import Database
from harmonia.server.db.graders import Grader
from harmonia.server.db.interactions import Completion
from harmonia.server.db.metrics import DirectScore, Metric
from harmonia.server.services.abtests.abtests import ABTests
from harmonia.server.services.access import Caller, ProjectAccess, require_in_project
from harmonia.server.services.graders.configs import sample_thread
from harmonia.server.services.graders.graders import Graders
from harmonia.server.services.graders.judging import Graded
from harmonia.server.services.interactions.interaction import text_of
from harmonia.server.services.interactions.writer import InteractionWriter
from harmonia.server.services.metrics import checked_value
from harmonia.threads import StringThread

MAX_AT_ONCE = 200
"""Conversations of one request: it waits for all of them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a grader made of a conversation: a score, or why there is none.

    error: the grader failed, and `code` is the name of its error as `harmonia.errors` has it; ignored: it left the
    conversation out. score_id: of the score that was stored.
    """

    completion_id: uuid.UUID | None
    value: float | None = None
    reasoning: str | None = None
    error: str | None = None
    code: str | None = None
    ignored: bool = False
    score_id: uuid.UUID | None = None


class Grading:
    """Runs graders and keeps what they find."""

    def __init__(self, database: Database, writer: InteractionWriter, graders: Graders, ab_tests: ABTests) -> None:
        self._database = database
        self._writer = writer
        self._graders = graders
        self._ab_tests = ab_tests

    async def try_out(self, caller: Caller, project: str, grader: str, samples: Sequence[object]) -> list[Verdict]:
        """The verdicts about conversations in JSON (see `sample_thread`); nothing is kept. Needs `project:infer`."""
        _check_number(len(samples))
        threads = [sample_thread(sample) for sample in samples]
        row = (await self._graders.get(caller, project, grader)).row
        await self._require(caller, project, "project:infer")
        return [_verdict(None, graded) for graded in await self._graders.grade_all(row, threads)]

    async def score(self, caller: Caller, project: str, grader: str, completions: Sequence[uuid.UUID]) -> list[Verdict]:
        """The verdicts about completions, stored as scores in the grader's metric; each replaces the grader's earlier
        one. Needs `project:infer`, `interaction:read` and `metric:log`.
        """
        _check_number(len(completions))
        if len(set(completions)) < len(completions):
            raise InvalidRequestError("a completion is named twice; name each once", field="completions")
        await self._writer.settled(completions)
        row = (await self._graders.get(caller, project, grader)).row
        access = await self._require(caller, project, "project:infer", "interaction:read", "metric:log")
        threads = await self._threads(access, completions)
        graded = await self._graders.grade_all(row, threads)
        async with self._database.begin() as session:
            await require_in_project(session, caller, project, "metric:log")
            return [
                await self._keep(session, caller, row, completion_id, each)
                for completion_id, each in zip(completions, graded, strict=True)
            ]

    async def _require(self, caller: Caller, project: str, *permissions: str) -> ProjectAccess:
        async with self._database.read() as session:
            for permission in permissions:
                access = await require_in_project(session, caller, project, permission)
            return access

    async def _threads(self, access: ProjectAccess, completions: Sequence[uuid.UUID]) -> list[StringThread]:
        async with self._database.read() as session:
            query = select(Completion).where(Completion.id.in_(completions), Completion.project_id == access.project_id)
            found = {row.id: row for row in (await session.execute(query)).scalars()}
        missing = next((each for each in completions if each not in found), None)
        if missing is not None:
            raise EntityNotFoundError(f"Completion {missing} does not exist", entity="completion")
        return [_thread(found[each]) for each in completions]

    async def _keep(
        self, session: AsyncSession, caller: Caller, grader: Grader, completion_id: uuid.UUID, graded: Graded
    ) -> Verdict:
        completion = await session.get(Completion, completion_id)
        if completion is None or not isinstance(graded, Grade):  # it may have been deleted meanwhile
            return _verdict(completion_id, graded)
        metric = await session.get(Metric, grader.metric_id)
        assert metric is not None  # graders keep their metrics
        try:
            value = checked_value(metric, graded.value)
        except InvalidRequestError as error:
            return Verdict(completion_id, error=error.message, code=error.code)
        earlier = delete(DirectScore).where(
            DirectScore.completion_id == completion_id,
            DirectScore.metric_id == metric.id,
            DirectScore.source == "GRADER",
        )
        await session.execute(earlier)
        row = DirectScore(
            completion_id=completion_id,
            metric_id=metric.id,
            value=value,
            source="GRADER",
            reason=graded.reasoning,
            created_by=caller.user_id,
        )
        session.add(row)
        await session.flush()
        if completion.ab_campaign_id is not None:
            await self._ab_tests.scored(session, completion.ab_campaign_id, metric.id)
        return Verdict(completion_id, value, graded.reasoning, score_id=row.id)


def _check_number(count: int) -> None:
    if not 1 <= count <= MAX_AT_ONCE:
        raise InvalidRequestError(
            f"one request is about 1 to {MAX_AT_ONCE} conversations, got {count}; send several requests for more",
            field="completions",
        )


def _thread(row: Completion) -> StringThread:
    turns = [(str(message.get("role")), text_of(message)) for message in row.messages]
    return StringThread([*turns, ("assistant", row.completion)], row.user_metadata or {})


def _verdict(completion_id: uuid.UUID | None, graded: Graded) -> Verdict:
    if isinstance(graded, Grade):
        return Verdict(completion_id, graded.value, graded.reasoning)
    if isinstance(graded, IgnoreGradeException):
        return Verdict(completion_id, error=graded.message, ignored=True)
    return Verdict(completion_id, error=graded.message, code=graded.code)
