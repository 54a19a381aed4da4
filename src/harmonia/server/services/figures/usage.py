"""What models were used for: tokens and answers by time, model, project and user.

Only stored answers of this server count: not those with `store=false`, and not what was deleted since. The database
adds up from one index, `ix_completions_usage`.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, and_, false, func, not_, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion
from harmonia.server.db.models import Model, ModelService
from harmonia.server.db.people import User
from harmonia.server.db.projects import Project
from harmonia.server.services.access import Caller, by_id_or_key, require_somewhere, visible_projects
from harmonia.server.services.figures.buckets import ALWAYS, WHOLE, Buckets, Span, buckets_of
from harmonia.server.services.interactions.filters import OneOf
from harmonia.server.services.interactions.writer import InteractionWriter
from harmonia.server.services.models.deployments import Bound
from harmonia.server.services.models.models import EXTERNAL

PERMISSION = "interaction:read"
MODEL, PROJECT, USER = "model", "project", "user"
"""What usage can be told by."""
MAX_CONDITIONS = 500
"""Parts of one filter: SQLite takes no deeper expression than 1000."""
_KEYS: dict[str, InstrumentedAttribute[Any]] = {
    MODEL: Completion.model_id,
    PROJECT: Completion.project_id,
    USER: Completion.created_by,
}


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens of prompts and answers, and how many answers these were."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    interactions: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.interactions + other.interactions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageWhere:
    """Conditions that must all hold, on ids or keys; of users, ids or e-mail addresses."""

    all_of: tuple[UsageWhere, ...] = ()
    any_of: tuple[UsageWhere, ...] | None = None
    """At least one of these; None: no condition."""
    negated: UsageWhere | None = None
    model: OneOf | None = None
    user: OneOf | None = None
    project: OneOf | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageWish:
    """Which usage is wanted, and in what units of time. What is None does not count."""

    span: Span = ALWAYS
    unit: str = WHOLE
    timezone: str | None = None
    model_ids: Sequence[uuid.UUID] | None = None
    user_ids: Sequence[uuid.UUID] | None = None
    project_ids: Sequence[uuid.UUID] | None = None
    where: UsageWhere | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Usage by bucket, for each of some things. starts: of the buckets, UTC milliseconds."""

    starts: tuple[int, ...] = ()
    amounts: dict[Any, list[Amount]] = field(default_factory=dict)
    """As many as there are starts, by the id of a model, project or user; those without any use are not there."""

    def totals(self) -> dict[Any, Amount]:
        """Of the whole time, those of most tokens first."""
        summed = {key: sum(amounts, Amount()) for key, amounts in self.amounts.items()}
        return dict(sorted(summed.items(), key=lambda item: -item[1].prompt_tokens - item[1].completion_tokens))


@dataclass(frozen=True, slots=True)
class ServiceUse:
    """What one model was used for in one project."""

    project: Project
    service: Bound | None
    """None: an answer of a model that was never in the project."""
    amount: Amount


@dataclass(frozen=True, slots=True)
class UsageOptions:
    """Who asked which models where."""

    users: list[User]
    projects: list[Project]
    models: list[Model]


class UsageFigures:
    """Reads usage of the projects in which the caller has `interaction:read`; refuses who has it nowhere."""

    def __init__(self, database: Database, writer: InteractionWriter) -> None:
        self._database = database
        self._writer = writer

    async def of_model(
        self, caller: Caller, model_id: uuid.UUID, wish: UsageWish
    ) -> tuple[Sequence[int], list[Amount]]:
        """Starts of buckets, and what a model was used for in each; nothing of a model that was never asked."""
        await self._writer.settled()
        async with self._database.read() as session:
            await require_somewhere(session, caller, PERMISSION)
            if await session.get(Model, model_id) is None:
                raise EntityNotFoundError(f"Model {str(model_id)!r} does not exist", entity="model")
            wanted = _wanted(caller, wish, Completion.model_id == model_id)
            chart = await _chart(session, wanted, wish, MODEL)
            return chart.starts, chart.amounts.get(model_id, [Amount()] * len(chart.starts))

    async def by(self, caller: Caller, key: str, wish: UsageWish) -> Chart:
        """By MODEL, PROJECT or USER."""
        await self._writer.settled()
        async with self._database.read() as session:
            await require_somewhere(session, caller, PERMISSION)
            return await _chart(session, _wanted(caller, wish), wish, key)

    async def by_service(self, caller: Caller, wish: UsageWish) -> list[ServiceUse]:
        """By the models of each project, over the whole time; those of most tokens first in each project."""
        await self._writer.settled()
        async with self._database.read() as session:
            await require_somewhere(session, caller, PERMISSION)
            keys = (Completion.project_id, Completion.model_id)
            rows = await session.execute(select(*keys, *_SUMS).where(_wanted(caller, wish)).group_by(*keys))
            found = {(row[0], row[1]): _amount(row[2:]) for row in rows.all()}
            projects = await _rows(session, Project, {project for project, _ in found})
            query = select(ModelService, Model).join(Model, Model.id == ModelService.model_id)
            query = query.where(
                ModelService.project_id.in_({project for project, _ in found}),
                ModelService.model_id.in_({model for _, model in found}),
            )
            pairs = [Bound(service, model) for service, model in (await session.execute(query)).all()]
        services: dict[tuple[uuid.UUID, uuid.UUID | None], Bound] = {
            (bound.service.project_id, bound.model.id): bound for bound in pairs
        }
        uses = [ServiceUse(projects[key[0]], services.get(key), amount) for key, amount in found.items()]
        return sorted(uses, key=lambda use: (use.project.key, -use.amount.prompt_tokens - use.amount.completion_tokens))

    async def options(self, caller: Caller, span: Span) -> UsageOptions:
        """Who asked which models where, in that time."""
        await self._writer.settled()
        async with self._database.read() as session:
            await require_somewhere(session, caller, PERMISSION)
            wanted = _wanted(caller, UsageWish(span=span))
            found = (await session.execute(select(*_KEYS.values()).where(wanted).distinct())).all()
            models = await _rows(session, Model, {row[0] for row in found})
            projects = await _rows(session, Project, {row[1] for row in found})
            users = await _rows(session, User, {row[2] for row in found})
        return UsageOptions(
            sorted(users.values(), key=lambda user: user.email),
            sorted(projects.values(), key=lambda project: project.key),
            sorted(models.values(), key=lambda model: model.key),
        )

    async def models(self, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Model]:
        """Models that usage named, deleted ones included."""
        async with self._database.read() as session:
            return await _rows(session, Model, set(ids))


def is_external(model: Model) -> bool:
    """Whether somebody else computed."""
    return model.kind == EXTERNAL


_SUMS = (
    func.coalesce(func.sum(Completion.prompt_tokens), 0),
    func.coalesce(func.sum(Completion.completion_tokens), 0),
    func.count(),
)


def _amount(sums: Sequence[Any]) -> Amount:
    return Amount(*map(int, sums))


async def _chart(session: AsyncSession, wanted: ColumnElement[bool], wish: UsageWish, key: str) -> Chart:
    buckets = await _buckets(session, wanted, wish)
    if buckets is None:
        return Chart()
    place = buckets.place(Completion.created_at).label("place")
    column = _KEYS[key]
    rows = (await session.execute(select(column, place, *_SUMS).where(wanted).group_by(column, place))).all()
    amounts: dict[Any, list[Amount]] = defaultdict(lambda: [Amount()] * len(buckets.starts))
    for owner, number, *sums in rows:
        amounts[owner][number] = _amount(sums)
    return Chart(buckets.starts, dict(amounts))


async def _buckets(session: AsyncSession, wanted: ColumnElement[bool], wish: UsageWish) -> Buckets | None:
    """Without a beginning, from the first use on; None if there was none."""
    since = wish.span.since
    if since is None:
        since = (await session.execute(select(func.min(Completion.created_at)).where(wanted))).scalar()
        if since is None:
            return None
    until = now_ms() + 1 if wish.span.until is None else wish.span.until
    return buckets_of(Span(since, max(until, since + 1)), wish.unit, wish.timezone)


async def _rows(session: AsyncSession, table: Any, ids: set[Any]) -> dict[uuid.UUID, Any]:
    found = (await session.execute(select(table).where(table.id.in_(ids)))).scalars()
    return {row.id: row for row in found}


def _wanted(caller: Caller, wish: UsageWish, *more: ColumnElement[bool]) -> ColumnElement[bool]:
    chosen: list[ColumnElement[bool]] = [
        column.in_(ids)
        for column, ids in (
            (Completion.model_id, wish.model_ids),
            (Completion.created_by, wish.user_ids),
            (Completion.project_id, wish.project_ids),
        )
        if ids is not None
    ]
    if wish.where is not None:
        _require_few(wish.where)
        chosen.append(_condition(wish.where))
    return and_(
        Completion.project_id.in_(visible_projects(caller, PERMISSION)),
        Completion.source == "LIVE",
        Completion.model_id.is_not(None),
        *wish.span.has(Completion.created_at),
        *chosen,
        *more,
    )


def _require_few(where: UsageWhere) -> None:
    waiting, count = [where], 0
    while waiting:
        part = waiting.pop()
        count += 1
        waiting += [*part.all_of, *(part.any_of or ()), *([] if part.negated is None else [part.negated])]
    if count > MAX_CONDITIONS:
        raise InvalidRequestError(
            f"advancedFilter: a filter has at most {MAX_CONDITIONS} parts, got {count}", field="advancedFilter"
        )


def _condition(where: UsageWhere) -> ColumnElement[bool]:
    parts = [_condition(part) for part in where.all_of]
    if where.any_of is not None:
        parts.append(or_(false(), *(_condition(part) for part in where.any_of)))
    if where.negated is not None:
        parts.append(not_(func.coalesce(_condition(where.negated), false())))
    for key, wanted in ((MODEL, where.model), (USER, where.user), (PROJECT, where.project)):
        if wanted is not None:
            parts += _one_of(key, wanted)
    return and_(true(), *parts)


def _one_of(key: str, wanted: OneOf) -> list[ColumnElement[bool]]:
    parts = [] if wanted.eq is None else [_is(key, wanted.eq)]
    if wanted.any_of is not None:
        parts.append(or_(false(), *(_is(key, text) for text in wanted.any_of)))
    if wanted.neq is not None:
        parts.append(not_(func.coalesce(_is(key, wanted.neq), false())))
    return parts


def _is(key: str, text: str) -> ColumnElement[bool]:
    owner = {
        MODEL: select(Model.id).where(by_id_or_key(Model.id, Model.key, text)),
        USER: select(User.id).where(by_id_or_key(User.id, User.email, text)),
        PROJECT: select(Project.id).where(by_id_or_key(Project.id, Project.key, text)),
    }
    return _KEYS[key].in_(owner[key])
