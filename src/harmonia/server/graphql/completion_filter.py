"""How callers say which completions they want."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from enum import Enum

import strawberry

from harmonia.server.graphql.paging import IdOrKeyCondition, LabelFilter, TextCondition, TimeRange, moments_of
from harmonia.server.graphql.scalars import IdOrKey
from harmonia.server.services.interactions.filters import LabelIs, Number, OneOf, ScoreIs, TextIs, Where


@strawberry.enum
class CompletionSource(Enum):
    """Where a completion comes from."""

    LIVE = "LIVE"
    OFFLINE = "OFFLINE"
    AUTOMATION = "AUTOMATION"
    DATASET = "DATASET"
    EVALUATION = "EVALUATION"


@strawberry.input
class StringCondition:
    """What a text must be, or must not be."""

    eq: str | None = None
    in_: list[str] | None = strawberry.field(name="in", default=None)
    neq: str | None = None


@strawberry.input
class FloatNumericCondition:
    """What a number must be."""

    eq: float | None = None
    neq: float | None = None
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@strawberry.input
class LabelCondition:
    """A label that must be there, with such a value."""

    key: str
    value: StringCondition | None = None


@strawberry.input
class ScoreCondition:
    """A score that must be there, with such a value, for one of these reasons."""

    metric: IdOrKey
    value: FloatNumericCondition | None = None
    reasons: list[str] | None = None


@strawberry.input
class CompletionScoreFilterInput:
    """The same in one piece."""

    metric: IdOrKey
    gt: float | None = None
    gte: float | None = None
    eq: float | None = None
    neq: float | None = None
    lt: float | None = None
    lte: float | None = None
    reasons: list[str] | None = None


@strawberry.input
class CompletionComparisonFilterInput:
    """A metric in which the completion must have been compared."""

    metric: IdOrKey


@strawberry.input
class CompletionFilterExpression:
    """Conditions that must all hold. One without any is no condition."""

    and_: list[CompletionFilterExpression] | None = strawberry.field(name="and", default=None)
    or_: list[CompletionFilterExpression] | None = strawberry.field(name="or", default=None)
    not_: CompletionFilterExpression | None = strawberry.field(name="not", default=None)
    timerange: TimeRange | None = None
    model: IdOrKeyCondition | None = None
    label: LabelCondition | None = None
    scores: ScoreCondition | None = None
    source: CompletionSource | None = None
    prompt_hash: StringCondition | None = None
    session_id: uuid.UUID | None = None
    created_by: IdOrKeyCondition | None = None
    completion_id: uuid.UUID | None = None
    completion: TextCondition | None = None
    prompt: TextCondition | None = None

    @property
    def where(self) -> Where:
        """For services."""
        since, until = moments_of(self.timerange)
        return Where(
            all_of=tuple(part.where for part in self.and_ or ()),
            any_of=tuple(part.where for part in self.or_ or ()),
            negated=None if self.not_ is None else self.not_.where,
            since=since,
            until=until,
            model=_one_of(self.model),
            label=None if self.label is None else LabelIs(self.label.key, _one_of(self.label.value) or OneOf()),
            score=_score(self.scores),
            sources=None if self.source is None else (self.source.value,),
            prompt_hash=_one_of(self.prompt_hash),
            session_id=self.session_id,
            created_by=_one_of(self.created_by),
            completion_id=self.completion_id,
            completion=_text(self.completion),
            prompt=_text(self.prompt),
        )


@strawberry.input
class ListCompletionsFilterInput:
    """Which completions of a project are wanted. `advancedFilter` wins over all the others."""

    project: IdOrKey
    models: list[IdOrKey] | None = None
    timerange: TimeRange | None = None
    session_id: uuid.UUID | None = None
    created_by: IdOrKey | None = None
    scores: list[CompletionScoreFilterInput] | None = None
    comparisons: list[CompletionComparisonFilterInput] | None = None
    labels: list[LabelFilter] | None = None
    prompt_hash: str | None = None
    completion_id: uuid.UUID | None = None
    source: list[CompletionSource] | None = None
    completion: str | None = None
    prompt: str | None = None
    advanced_filter: CompletionFilterExpression | None = None

    @property
    def where(self) -> Where:
        """For services."""
        if self.advanced_filter is not None:
            return self.advanced_filter.where
        since, until = moments_of(self.timerange)
        scores = (
            ScoreIs(item.metric, Number(item.eq, item.neq, item.gt, item.gte, item.lt, item.lte), _tuple(item.reasons))
            for item in self.scores or ()
        )
        labels = (LabelIs(item.key, OneOf(any_of=_tuple(item.value))) for item in self.labels or ())
        return Where(
            all_of=(
                *(Where(score=score) for score in scores),
                *(Where(label=label) for label in labels),
                *(Where(comparison=item.metric) for item in self.comparisons or ()),
            ),
            since=since,
            until=until,
            model=None if self.models is None else OneOf(any_of=tuple(self.models)),
            sources=None if self.source is None else tuple(item.value for item in self.source),
            prompt_hash=None if self.prompt_hash is None else OneOf(eq=self.prompt_hash),
            session_id=self.session_id,
            created_by=None if self.created_by is None else OneOf(eq=self.created_by),
            completion_id=self.completion_id,
            completion=None if self.completion is None else TextIs(contains=self.completion),
            prompt=None if self.prompt is None else TextIs(contains=self.prompt),
        )


@strawberry.input
class ScoreFilterInput:
    """Which scores count: those of completions with all these labels."""

    labels: list[LabelFilter] | None = None

    @property
    def wish(self) -> tuple[LabelIs, ...]:
        """For services."""
        return tuple(LabelIs(item.key, OneOf(any_of=_tuple(item.value))) for item in self.labels or ())

    def lets_through(self, labels: Mapping[str, str]) -> bool:
        """Whether the scores of a completion with these labels count."""
        return all(
            item.key in labels and (item.value is None or labels[item.key] in item.value) for item in self.labels or ()
        )


def _one_of(condition: StringCondition | IdOrKeyCondition | None) -> OneOf | None:
    return None if condition is None else OneOf(condition.eq, _tuple(condition.in_), condition.neq)


def _text(condition: TextCondition | None) -> TextIs | None:
    return None if condition is None else TextIs(condition.eq, condition.contains)


def _score(condition: ScoreCondition | None) -> ScoreIs | None:
    if condition is None:
        return None
    value = condition.value or FloatNumericCondition()
    number = Number(value.eq, value.neq, value.gt, value.gte, value.lt, value.lte)
    return ScoreIs(condition.metric, number, _tuple(condition.reasons))


def _tuple(items: list[str] | list[IdOrKey] | None) -> tuple[str, ...] | None:
    return None if items is None else tuple(items)
