"""Interactions: what models were asked and answered, with the feedback on it."""

from __future__ import annotations

from typing import Annotated, Any

from harmonia.sdk.operations.base import Operation, Result, chosen, optional, query
from harmonia.sdk.operations.jobs import PageInfo
from harmonia.sdk.operations.metrics import Metric, MetricName
from harmonia.sdk.operations.models import ProjectName, ServiceName
from harmonia.sdk.operations.recipes import Label


class Turn(Result, frozen=True):
    """A message of a conversation, as text."""

    role: str
    content: str


class Score(Result, frozen=True):
    """A score that somebody or a grader gave; a BOOL metric's is 0 or 1."""

    id: str
    value: float
    metric: Metric | None
    reason: str | None
    details: str | None
    created_at: int


class ComparedCompletion(Result, frozen=True):
    """One side of a comparison."""

    id: str
    completion: str | None
    source: str
    model: ServiceName | None


class Comparison(Result, frozen=True):
    """Which of two answers was preferred."""

    id: str
    created_at: int
    project: ProjectName | None
    metric: MetricName | None
    preferred_completion: Annotated[ComparedCompletion | None, chosen(field="preferedCompletion")]
    other_completion: ComparedCompletion | None


class TokenCounts(Result, frozen=True):
    """Tokens of one interaction.

    The last two: of what a draft proposed, what was right and what was not; None where the model has none.
    """

    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    accepted_prediction_tokens: int | None
    rejected_prediction_tokens: int | None


class Metadata(Result, frozen=True):
    """How an answer came about."""

    parameters: Any
    timings: Any
    system: Any
    usage: TokenCounts | None


class Interaction(Result, frozen=True):
    """A prompt, its answer, and what was said about it; `id` is the `completion_id` of a chat answer."""

    id: str
    chat_messages: list[Turn]
    completion: str | None
    source: str
    model: ServiceName | None
    direct_scores: list[Score]
    comparison_scores: list[Comparison]
    labels: list[Label]
    metadata: Metadata
    created_at: int


class InteractionPage(Result, frozen=True):
    """Some interactions of `total_count`."""

    total_count: int
    page_info: PageInfo
    nodes: list[Interaction]


class ScoreStatistics(Result, frozen=True):
    """The scores of a group in one metric."""

    metric: Metric
    scores: int
    average: float | None
    max: float | None
    min: float | None
    stddev: float | None
    sum: float | None


class InteractionNodes(Result, frozen=True):
    """The first interactions of a group."""

    nodes: list[Interaction]


class InteractionGroup(Result, frozen=True):
    """The interactions of one model or one prompt."""

    key: str | None
    count: int
    direct_scores_stats: list[ScoreStatistics]
    completions: Annotated[
        InteractionNodes,
        chosen(field="completions", arguments='(page: $page, order: [{field: "created_at", order: DESC}])'),
    ]


class InteractionGroupPage(Result, frozen=True):
    """Some groups of `total_count`."""

    total_count: int
    page_info: PageInfo
    nodes: list[InteractionGroup]


_LIST = {"filter": "ListCompletionsFilterInput!", "page": "CursorPageInput!", "order": "[OrderPair!]!"}

INTERACTIONS = query("completions", InteractionPage, **_LIST)
INTERACTION_GROUPS: Operation[InteractionGroupPage] = query(
    "completionsGrouped", InteractionGroupPage, groupBy="CompletionGroupBy!", **_LIST
)
INTERACTION = optional("completion", Interaction, project="IdOrKey!", id="UUID!")
