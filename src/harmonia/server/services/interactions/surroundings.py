"""What stands around completions: their sessions, other answers to their prompts, and what filters can ask for."""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion, CompletionLabel
from harmonia.server.db.models import Model
from harmonia.server.db.people import User
from harmonia.server.services.access import Caller, require_in_project
from harmonia.server.services.interactions.details import CompletionInfo, details
from harmonia.server.services.interactions.filters import OneOf, Where
from harmonia.server.services.interactions.selection import READ, Selection, selected

MAX_TURNS = 1000
"""Completions of a session that are shown."""
MAX_VALUES = 100
"""Values of a label that are shown, those of most completions first."""


@dataclass(frozen=True, slots=True)
class ValueUse:
    """How many completions have a value, and when the last of them came (UTC milliseconds)."""

    value: str
    count: int
    last_used: int


@dataclass(frozen=True, slots=True)
class KeyUse:
    """The same for a label, whatever its value."""

    key: str
    count: int
    last_used: int
    values: list[ValueUse]


@dataclass(frozen=True, slots=True)
class Options:
    """What the completions of a project can be filtered by."""

    users: list[User]
    models: list[Model]
    labels: list[KeyUse]


class Surroundings:
    """Reads what belongs to completions that the caller has been shown, and the options of a project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def session(self, row: Completion) -> list[CompletionInfo]:
        """The completions of the same session, oldest first."""
        query = select(Completion).where(
            Completion.project_id == row.project_id, Completion.session_id == row.session_id
        )
        async with self._database.read() as session:
            found = await session.execute(query.order_by(Completion.created_at, Completion.id).limit(MAX_TURNS))
            return await details(session, list(found.scalars()))

    async def earlier(self, row: Completion) -> list[Completion]:
        """The completions of the same session that came before, the latest first."""
        query = select(Completion).where(
            Completion.project_id == row.project_id,
            Completion.session_id == row.session_id,
            Completion.created_at < row.created_at,
        )
        async with self._database.read() as session:
            found = await session.execute(query.order_by(Completion.created_at.desc(), Completion.id).limit(MAX_TURNS))
            return list(found.scalars())

    async def siblings(self, caller: Caller, row: Completion, selection: Selection) -> int:
        """How many others of the selection answer the same prompt."""
        same = Where(prompt_hash=OneOf(eq=row.prompt_hash), negated=Where(ids=(row.id,)), all_of=(selection.where,))
        async with self._database.read() as session:
            access = await require_in_project(session, caller, str(row.project_id), READ)
            wanted = await selected(session, access, Selection(same, selection.project))
            return int((await session.execute(select(func.count()).select_from(Completion).where(wanted))).scalar_one())

    async def creator(self, user_id: uuid.UUID | None) -> User | None:
        """Who called, unless nobody knows."""
        async with self._database.read() as session:
            return None if user_id is None else await session.get(User, user_id)

    async def options(self, caller: Caller, project: str) -> Options:
        """What filters can ask for; needs `interaction:read`."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, READ)
            own = Completion.project_id == access.project_id
            callers = select(Completion.created_by).where(own)
            users = await session.execute(select(User).where(User.id.in_(callers)).order_by(User.email))
            asked = select(Completion.model_id).where(own)
            models = await session.execute(select(Model).where(Model.id.in_(asked)).order_by(Model.key))
            return Options(list(users.scalars()), list(models.scalars()), await _labels(session, access.project_id))

    async def labels(self, project_id: uuid.UUID) -> list[KeyUse]:
        """The labels of a project that the caller has been shown."""
        async with self._database.read() as session:
            return await _labels(session, project_id)


async def _labels(session: AsyncSession, project_id: uuid.UUID) -> list[KeyUse]:
    count, last = func.count().label("count"), func.max(Completion.created_at).label("last")
    query = (
        select(CompletionLabel.key, CompletionLabel.value, count, last)
        .join(Completion, Completion.id == CompletionLabel.completion_id)
        .where(Completion.project_id == project_id)
        .group_by(CompletionLabel.key, CompletionLabel.value)
        .order_by(CompletionLabel.key, count.desc(), CompletionLabel.value)
    )
    found: dict[str, list[ValueUse]] = defaultdict(list)
    for key, value, uses, last_used in (await session.execute(query)).all():
        found[key].append(ValueUse(value, uses, last_used))
    return [
        KeyUse(key, sum(use.count for use in uses), max(use.last_used for use in uses), uses[:MAX_VALUES])
        for key, uses in found.items()
    ]
