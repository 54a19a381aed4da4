"""Completions: what was asked and answered, one by one and in groups."""

from __future__ import annotations

import uuid
from dataclasses import replace
from enum import Enum
from typing import Any

import strawberry
from strawberry.scalars import JSON

from harmonia.server.db.interactions import Completion as Row
from harmonia.server.graphql.completion_filter import (
    CompletionSource,
    ListCompletionsFilterInput,
    ScoreFilterInput,
)
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.messages import (
    SHOWN,
    ChatMessage,
    ChatMessageContentPart,
    CompletionContentSummaryOutput,
    CompletionSummaryOutput,
    PromptSummaryOutput,
    TextContentPart,
)
from harmonia.server.graphql.metrics import DirectScore, Metric
from harmonia.server.graphql.models import Model, ModelService
from harmonia.server.graphql.paging import CursorPageInput, OrderPair, PageInfo, SortDirection
from harmonia.server.graphql.people import User
from harmonia.server.graphql.projects import Project
from harmonia.server.graphql.scalars import IdOrKey, Timestamp, TimestampSec
from harmonia.server.services.interactions.details import BriefCompletion, ComparisonInfo, CompletionInfo
from harmonia.server.services.interactions.filters import Where
from harmonia.server.services.interactions.interaction import text_of
from harmonia.server.services.interactions.interactions import CompletionPage, Group, Listing, ScoreStats
from harmonia.server.services.interactions.selection import CHANGE, Selection
from harmonia.server.services.keyset import Order, Page, PageWish


@strawberry.enum
class CompletionGroupBy(Enum):
    """What completions of a group have in common."""

    MODEL = "MODEL"
    PROMPT = "PROMPT"


@strawberry.type
class Usage:
    """Token counts. The last two: of what a draft proposed, what was right and what was not; null where none did."""

    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    accepted_prediction_tokens: int | None
    rejected_prediction_tokens: int | None


@strawberry.type
class CompletionMetadata:
    """How a completion came about."""

    parameters: JSON | None
    timings: JSON | None
    usage: Usage | None
    system: JSON | None


@strawberry.type
class CompletionLabel:
    """A word of the caller about a completion."""

    key: str
    value: str


@strawberry.type
class ComparisonScore:
    """Which of two completions was better."""

    id: uuid.UUID
    created_at: Timestamp
    project: Project | None
    metric: Metric | None
    prefered_completion: Completion | None
    other_completion: Completion | None

    @classmethod
    def of(cls, info: ComparisonInfo) -> ComparisonScore:
        """From its rows."""
        return cls(
            id=info.row.id,
            created_at=Timestamp(info.row.created_at),
            project=Project.of(info.project),
            metric=Metric.of(info.metric),
            prefered_completion=Completion.of_brief(info.preferred),
            other_completion=Completion.of_brief(info.other),
        )


@strawberry.type
class Completion:
    """One answer of a model to one prompt."""

    info: strawberry.Private[BriefCompletion]
    known: strawberry.Private[CompletionInfo | None]
    id: uuid.UUID
    prompt_hash: str | None
    chat_messages: list[ChatMessage]
    source: CompletionSource
    model: Model | None
    created_at: Timestamp
    metadata: CompletionMetadata

    @classmethod
    def of(cls, info: CompletionInfo) -> Completion:
        """With all that is known of it."""
        return cls.of_brief(BriefCompletion(info.row, info.model), info)

    @classmethod
    def of_brief(cls, info: BriefCompletion, known: CompletionInfo | None = None) -> Completion:
        """With what is read when somebody asks."""
        row = info.row
        return cls(
            info=info,
            known=known,
            id=row.id,
            prompt_hash=row.prompt_hash,
            chat_messages=[ChatMessage.of(message) for message in row.messages],
            source=CompletionSource(row.source),
            model=None if info.model is None else Model.of(info.model),
            created_at=Timestamp(row.created_at),
            metadata=CompletionMetadata(
                parameters=_json(row.parameters), timings=_json(row.timings), usage=_usage(row.usage), system=None
            ),
        )

    @strawberry.field
    def completion(self, max_length: int | None = None) -> str | None:
        """The answer, or its first characters."""
        text = self.info.row.completion
        return text if max_length is None else text[: max(0, max_length)]

    @strawberry.field
    def completion_parts(self) -> list[ChatMessageContentPart]:
        """The same in pieces."""
        return [TextContentPart(text=self.info.row.completion)]

    @strawberry.field
    def summary(self) -> CompletionSummaryOutput:
        """It at a glance."""
        row = self.info.row
        answer = CompletionContentSummaryOutput(content=row.completion[:SHOWN], image_count=0)
        return CompletionSummaryOutput(prompt=PromptSummaryOutput.of(row.messages), completion=answer)

    @strawberry.field
    async def model_service(self, info: Info) -> ModelService | None:
        """The model in its project, taken out meanwhile or not."""
        service_id = self.info.row.model_service_id
        found = {} if service_id is None else await info.context.services.deployments.by_id([service_id])
        return None if service_id not in found else ModelService.of(found[service_id])

    @strawberry.field
    async def created_by(self, info: Info) -> User | None:
        """Who called."""
        row = await info.context.services.surroundings.creator(self.info.row.created_by)
        return None if row is None else User.of(row)

    @strawberry.field
    def session(self) -> Session:
        """The conversation that it is a turn of."""
        return Session(row=self.info.row, id=self.info.row.session_id)

    @strawberry.field
    async def history(self, info: Info) -> list[CompletionHistoryEntry]:
        """The turns of its session before it, the latest first."""
        rows = await info.context.services.surroundings.earlier(self.info.row)
        return [CompletionHistoryEntry.of(row, level) for level, row in enumerate(rows, 1)]

    @strawberry.field
    async def siblings_count(self, info: Info, filter: ListCompletionsFilterInput) -> int:
        """How many others answer the same prompt, of those that the filter lets through."""
        selection = Selection(filter.where, filter.project)
        return await info.context.services.surroundings.siblings(info.context.caller, self.info.row, selection)

    @strawberry.field
    def has_user_metadata(self) -> bool:
        """Whether somebody wrote something about it afterwards."""
        return bool(self.info.row.user_metadata)

    @strawberry.field
    def user_metadata(self) -> JSON | None:
        """What somebody wrote about it afterwards."""
        return _json(self.info.row.user_metadata)

    @strawberry.field
    async def can_edit(self, info: Info) -> bool:
        """Whether the caller may change or delete it."""
        projects = info.context.services.projects
        return CHANGE in await projects.permissions(info.context.caller, self.info.row.project_id)

    @strawberry.field
    async def direct_scores(self, info: Info, filter: ScoreFilterInput | None = None) -> list[DirectScore]:
        """The values that it got; none if it lacks a label that the filter wants."""
        known = await self._all(info)
        if filter is not None and not filter.lets_through({row.key: row.value for row in known.labels}):
            return []
        return [DirectScore.of(score) for score in known.scores]

    @strawberry.field
    async def comparison_scores(self, info: Info) -> list[ComparisonScore]:
        """The comparisons that it took part in."""
        return [ComparisonScore.of(item) for item in (await self._all(info)).comparisons]

    @strawberry.field
    async def labels(self, info: Info, with_protected: bool = False) -> list[CompletionLabel]:
        """What the caller said about it. No label is protected, so `withProtected` changes nothing."""
        return [CompletionLabel(key=row.key, value=row.value) for row in (await self._all(info)).labels]

    async def _all(self, info: Info) -> CompletionInfo:
        if self.known is None:
            self.known = await info.context.services.interactions.details(self.info.row)
        return self.known


@strawberry.type
class Session:
    """A conversation."""

    row: strawberry.Private[Row]
    id: uuid.UUID

    @strawberry.field
    async def turns(self, info: Info) -> list[Completion]:
        """Its completions, oldest first."""
        return [Completion.of(item) for item in await info.context.services.surroundings.session(self.row)]


@strawberry.type(name="CompletionHistoryEntryOuput")
class CompletionHistoryEntry:
    """An earlier turn. level: how many turns before; prompt: its last message."""

    level: int
    completion_id: uuid.UUID
    prompt: str
    completion: str
    created_at: TimestampSec

    @classmethod
    def of(cls, row: Row, level: int) -> CompletionHistoryEntry:
        """From its row."""
        prompt = text_of(row.messages[-1]) if row.messages else ""
        created_at = TimestampSec(row.created_at // 1000)
        return cls(level=level, completion_id=row.id, prompt=prompt, completion=row.completion, created_at=created_at)


@strawberry.type
class CompletionEdge:
    """A completion, and where the list goes on after it."""

    node: Completion
    cursor: str


@strawberry.type
class CompletionConnection:
    """Some of the completions that are wanted. totalCount: of all pages."""

    page_info: PageInfo
    edges: list[CompletionEdge]
    nodes: list[Completion]
    total_count: int

    @classmethod
    def of(cls, found: CompletionPage) -> CompletionConnection:
        """From what was read."""
        nodes = [Completion.of(item) for item in found.items]
        edges = [
            CompletionEdge(node=node, cursor=cursor) for node, cursor in zip(nodes, found.page.cursors, strict=True)
        ]
        return cls(page_info=_page_info(found.page), edges=edges, nodes=nodes, total_count=found.total)


@strawberry.type
class CompletionGroupScoreStats:
    """The scores of a group in one metric."""

    metric: Metric
    scores: int
    average: float | None
    max: float | None
    min: float | None
    stddev: float | None
    sum: float | None

    @classmethod
    def of(cls, stats: ScoreStats) -> CompletionGroupScoreStats:
        """From what was computed."""
        return cls(
            metric=Metric.of(stats.metric),
            scores=stats.count,
            average=stats.average,
            max=stats.max,
            min=stats.min,
            stddev=stats.stddev,
            sum=stats.sum,
        )


@strawberry.type
class CompletionGroupData:
    """Completions that have something in common."""

    listing: strawberry.Private[Listing]
    by: strawberry.Private[CompletionGroupBy]
    key: str | None
    count: int
    direct_scores_stats: list[CompletionGroupScoreStats]

    @strawberry.field
    async def completions(
        self, info: Info, page: CursorPageInput, order: list[OrderPair] | None = None
    ) -> CompletionConnection:
        """They, newest first. Of a page that is the groups' own only the size counts: its cursors are of groups."""
        wish = page.wish
        if wish == self.listing.wish:
            wish = PageWish(first=wish.first, last=wish.last)
        listing = replace(self.listing, wish=wish, orders=_orders(order))
        interactions = info.context.services.interactions
        found = await interactions.members(info.context.caller, listing, self.by.value, self.key)
        return CompletionConnection.of(found)


@strawberry.type
class CompletionGroupDataEdge:
    """A group, and where the list goes on after it."""

    node: CompletionGroupData
    cursor: str


@strawberry.type
class CompletionGroupDataConnection:
    """Some of the groups. totalCount: groups of all pages."""

    page_info: PageInfo
    edges: list[CompletionGroupDataEdge]
    nodes: list[CompletionGroupData]
    group_by: CompletionGroupBy
    total_count: int


@strawberry.type
class InteractionQuery:
    """Completions."""

    @strawberry.field
    async def completions(
        self,
        info: Info,
        filter: ListCompletionsFilterInput,
        page: CursorPageInput,
        order: list[OrderPair] | None = None,
    ) -> CompletionConnection:
        """Those that are wanted, newest first unless told otherwise."""
        listing = Listing(project=filter.project, where=filter.where, wish=page.wish, orders=_orders(order))
        return CompletionConnection.of(await info.context.services.interactions.page(info.context.caller, listing))

    @strawberry.field
    async def completions_grouped(
        self,
        info: Info,
        filter: ListCompletionsFilterInput,
        group_by: CompletionGroupBy,
        page: CursorPageInput,
        order: list[OrderPair] | None = None,
        score_filter: ScoreFilterInput | None = None,
    ) -> CompletionGroupDataConnection:
        """The same in groups, in the order of their keys unless told otherwise. scoreFilter: of the statistics."""
        listing = Listing(project=filter.project, where=filter.where, wish=page.wish, orders=_orders(order))
        labels = () if score_filter is None else score_filter.wish
        scored = Where(all_of=tuple(Where(label=label) for label in labels))
        interactions = info.context.services.interactions
        found = await interactions.grouped(info.context.caller, listing, group_by.value, scored)
        nodes = [_group(group, listing, group_by) for group in found.groups]
        edges = [
            CompletionGroupDataEdge(node=node, cursor=cursor)
            for node, cursor in zip(nodes, found.page.cursors, strict=True)
        ]
        return CompletionGroupDataConnection(
            page_info=_page_info(found.page), edges=edges, nodes=nodes, group_by=group_by, total_count=found.total
        )

    @strawberry.field
    async def completion(self, info: Info, project: IdOrKey, id: uuid.UUID) -> Completion | None:
        """One of them."""
        found = await info.context.services.interactions.find(info.context.caller, project, id)
        return None if found is None else Completion.of(found)


def _group(group: Group, listing: Listing, by: CompletionGroupBy) -> CompletionGroupData:
    stats = [CompletionGroupScoreStats.of(item) for item in group.stats]
    return CompletionGroupData(listing=listing, by=by, key=group.key, count=group.count, direct_scores_stats=stats)


def _orders(order: list[OrderPair] | None) -> tuple[Order, ...]:
    return tuple(Order(item.field, item.order is SortDirection.DESC) for item in order or ())


def _page_info(page: Page) -> PageInfo:
    return PageInfo(
        has_previous_page=page.has_previous,
        has_next_page=page.has_next,
        start_cursor=page.cursors[0] if page.cursors else None,
        end_cursor=page.cursors[-1] if page.cursors else None,
    )


def _json(value: dict[str, Any] | None) -> JSON | None:
    return None if value is None else JSON(value)


def _usage(usage: dict[str, Any] | None) -> Usage | None:
    if usage is None:
        return None
    prompt, answer = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
    total = int(usage.get("total_tokens", prompt + answer))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=answer,
        total_tokens=total,
        accepted_prediction_tokens=usage.get("accepted_prediction_tokens"),
        rejected_prediction_tokens=usage.get("rejected_prediction_tokens"),
    )
