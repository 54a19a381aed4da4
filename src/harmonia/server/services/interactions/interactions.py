"""Interactions: recording them, and finding them again."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, String, Subquery, and_, func, insert, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion, CompletionLabel
from harmonia.server.db.metrics import DirectScore, Metric
from harmonia.server.services.access import Caller, require_in_project, visible_projects
from harmonia.server.services.interactions.details import CompletionInfo, details
from harmonia.server.services.interactions.feedback import NewScore, add_score
from harmonia.server.services.interactions.filters import Where, condition
from harmonia.server.services.interactions.interaction import Interaction, checked_labels, rows_of
from harmonia.server.services.interactions.writer import InteractionWriter
from harmonia.server.services.keyset import Column, Keyset, Order, Page, PageWish
from harmonia.server.services.metrics import IS_THERE, MetricInfo, metric_infos
from harmonia.server.services.models.deployments import named_service

MODEL, PROMPT = "MODEL", "PROMPT"
NEWEST_FIRST = (Order("created_at", descending=True),)
BY_GROUP = (Order("group"),)
_READ = "interaction:read"
_NONE: ColumnElement[str] = literal_column("''", String)
"""Instead of a key that is not known; a literal, since a bound value is another one in each clause to PostgreSQL."""
_COLUMNS: dict[str, Column] = {
    "id": Completion.id,
    "created_at": Completion.created_at,
    "model": func.coalesce(Completion.model_key, _NONE),
    "prompt_hash": Completion.prompt_hash,
    "session_id": Completion.session_id,
    "source": Completion.source,
}
_GROUPED: dict[str, Column] = {
    MODEL: func.coalesce(Completion.model_key, _NONE),
    PROMPT: Completion.prompt_hash,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInteraction:
    """An interaction that happened elsewhere, with the scores that it got."""

    messages: Sequence[Mapping[str, Any]]
    completion: str
    model: str | None = None
    """Of the project, by id or key."""
    session_id: uuid.UUID | None = None
    user: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    scores: Sequence[NewScore] = ()
    created_at: int | None = None
    """UTC milliseconds; None: now."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an interaction became."""

    completion_id: uuid.UUID
    session_id: uuid.UUID
    score_ids: list[uuid.UUID]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Which completions of a project, and which page of them. orders: none means newest first, or by group."""

    project: str
    where: Where
    wish: PageWish
    orders: Sequence[Order] = ()


@dataclass(frozen=True, slots=True)
class CompletionPage:
    """Some of the completions that are wanted, and how many those are."""

    items: list[CompletionInfo]
    page: Page
    total: int


@dataclass(frozen=True, slots=True)
class ScoreStats:
    """The scores of a group in one metric. stddev: of the sample; None of a single score."""

    metric: MetricInfo
    count: int
    average: float
    max: float
    min: float
    stddev: float | None
    sum: float


@dataclass(frozen=True, slots=True)
class Group:
    """Completions of one model (key: the model's) or one prompt (key: its hash)."""

    key: str | None
    count: int
    stats: list[ScoreStats]


@dataclass(frozen=True, slots=True)
class GroupPage:
    """Some of the groups, and how many there are."""

    groups: list[Group]
    page: Page
    total: int


class Interactions:
    """Everything about interactions."""

    def __init__(self, database: Database, writer: InteractionWriter) -> None:
        self._database = database
        self._writer = writer

    async def record(self, item: Interaction) -> uuid.UUID:
        """Take down what this server answered, without waiting for the database; the id is the interaction's own.

        Whoever calls has checked the caller's permission, and the labels with `checked_labels`.
        """
        return await self._writer.record(item)

    async def create(self, caller: Caller, project: str, new: NewInteraction) -> Recorded:
        """Take down what was answered elsewhere; it is in the database when this returns."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "interaction:create")
            service = None
            if new.model is not None:
                service = (await named_service(session, access.project_id, new.model)).service
            item = Interaction(
                project_id=access.project_id,
                messages=new.messages,
                completion=new.completion,
                model_key=None if service is None else service.key,
                model_service_id=None if service is None else service.id,
                model_id=None if service is None else service.model_id,
                session_id=new.session_id or uuid.uuid4(),
                user=new.user,
                labels=checked_labels(new.labels),
                created_by=caller.user_id,
                source="OFFLINE",
                created_at=now_ms() if new.created_at is None else new.created_at,
            )
            row, labels = rows_of(item)
            await session.execute(insert(Completion), [row])
            if labels:
                await session.execute(insert(CompletionLabel), labels)
            scores = [await add_score(session, access, item.id, score) for score in new.scores]
            await session.flush()
            return Recorded(item.id, item.session_id, [score.id for score in scores])

    async def find(self, caller: Caller, project: str, completion_id: uuid.UUID) -> CompletionInfo | None:
        """One completion; None if there is none that the caller may see."""
        await self._writer.settled([completion_id])
        async with self._database.read() as session:
            query = select(Completion).where(
                Completion.id == completion_id, Completion.project_id.in_(visible_projects(caller, _READ))
            )
            row = (await session.execute(query)).scalar_one_or_none()
            if row is None:
                return None
            access = await require_in_project(session, caller, project, _READ)
            return (await details(session, [row]))[0] if row.project_id == access.project_id else None

    async def details(self, row: Completion) -> CompletionInfo:
        """What belongs to a completion that the caller has been shown."""
        async with self._database.read() as session:
            return (await details(session, [row]))[0]

    async def page(self, caller: Caller, listing: Listing) -> CompletionPage:
        """Completions of a project; needs `interaction:read` there."""
        await self._writer.settled()
        async with self._database.read() as session:
            return await _page(session, listing, await _wanted(session, caller, listing))

    async def grouped(self, caller: Caller, listing: Listing, by: str, scored: Where | None = None) -> GroupPage:
        """The groups of these completions by MODEL or PROMPT, with statistics of their scores.

        scored: of which completions the scores enter the statistics; None: of all.
        """
        await self._writer.settled()
        async with self._database.read() as session:
            wanted = await _wanted(session, caller, listing)
            key = _GROUPED[by]
            groups = select(key.label("key"), func.count().label("count")).where(wanted).group_by(key).subquery()
            columns: dict[str, Column] = {"group": groups.c["key"], "count": groups.c["count"]}
            keyset = Keyset(columns, listing.orders or BY_GROUP, "group")
            found = await keyset.read(session, select(groups), listing.wish)
            total = await _count(session, groups)
            counted = wanted
            if scored is not None:
                counted = and_(wanted, await condition(session, await _project(session, caller, listing), scored))
            stats = await _stats(session, counted, key, [row[0] for row in found.rows])
            return GroupPage([Group(row[0] or None, row[1], stats[row[0]]) for row in found.rows], found, total)

    async def members(self, caller: Caller, listing: Listing, by: str, key: str | None) -> CompletionPage:
        """The completions of one group of those that `grouped` found."""
        async with self._database.read() as session:
            wanted = await _wanted(session, caller, listing)
            return await _page(session, listing, and_(wanted, _GROUPED[by] == (key or "")))


async def _wanted(session: AsyncSession, caller: Caller, listing: Listing) -> ColumnElement[bool]:
    return await condition(session, await _project(session, caller, listing), listing.where)


async def _project(session: AsyncSession, caller: Caller, listing: Listing) -> uuid.UUID:
    return (await require_in_project(session, caller, listing.project, _READ)).project_id


async def _page(session: AsyncSession, listing: Listing, wanted: ColumnElement[bool]) -> CompletionPage:
    keyset = Keyset(_COLUMNS, listing.orders or NEWEST_FIRST, "id")
    found = await keyset.read(session, select(Completion).where(wanted), listing.wish)
    total = await _count(session, select(Completion.id).where(wanted).subquery())
    return CompletionPage(await details(session, [row[0] for row in found.rows]), found, total)


async def _count(session: AsyncSession, rows: Subquery) -> int:
    return int((await session.execute(select(func.count()).select_from(rows))).scalar_one())


async def _stats(
    session: AsyncSession, wanted: ColumnElement[bool], key: Column, keys: list[str]
) -> dict[str, list[ScoreStats]]:
    """Per group and metric, in one query: the mean is joined to each score, so that deviations are from it."""
    value = DirectScore.value
    mean = func.avg(value).over(partition_by=[key, DirectScore.metric_id])
    scored = (
        select(key.label("key"), DirectScore.metric_id, value.label("value"), mean.label("mean"))
        .join(DirectScore, DirectScore.completion_id == Completion.id)
        .join(Metric, Metric.id == DirectScore.metric_id)
        .where(IS_THERE, wanted, key.in_(keys))
        .subquery()
    )
    deviation = scored.c.value - scored.c.mean
    query = select(
        scored.c.key,
        scored.c.metric_id,
        func.count(),
        func.avg(scored.c.value),
        func.max(scored.c.value),
        func.min(scored.c.value),
        func.sum(scored.c.value),
        func.sum(deviation * deviation),
    ).group_by(scored.c.key, scored.c.metric_id)
    rows = (await session.execute(query)).all()
    infos = await metric_infos(session, Metric.id.in_({row.metric_id for row in rows}))
    metrics = {info.row.id: (place, info) for place, info in enumerate(infos)}
    found: dict[str, list[ScoreStats]] = defaultdict(list)
    for key_, metric_id, count, average, largest, smallest, total, squares in sorted(
        rows, key=lambda row: metrics[row.metric_id][0]
    ):
        stddev = (max(squares, 0.0) / (count - 1)) ** 0.5 if count > 1 else None
        found[key_].append(ScoreStats(metrics[metric_id][1], count, average, largest, smallest, stddev, total))
    return found
