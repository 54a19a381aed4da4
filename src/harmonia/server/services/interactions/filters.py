"""Which completions are wanted: conditions that can be joined and negated, as SQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, false, func, not_, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import InvalidRequestError
from harmonia.server.db.interactions import Completion, CompletionLabel
from harmonia.server.db.metrics import Comparison, DirectScore
from harmonia.server.db.people import User
from harmonia.server.services.access import by_id_or_key
from harmonia.server.services.metrics import metric_named

MAX_CONDITIONS = 500
"""Conditions of one filter: SQLite takes no deeper expression than 1000."""
MAX_IDS = 10_000
"""Completions that one filter names: databases take some 32,000 values of a statement."""


@dataclass(frozen=True, slots=True)
class OneOf:
    """What something must be, or must not be. What is None does not count."""

    eq: str | None = None
    any_of: tuple[str, ...] | None = None
    neq: str | None = None


@dataclass(frozen=True, slots=True)
class Number:
    """What a number must be. What is None does not count."""

    eq: float | None = None
    neq: float | None = None
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True, slots=True)
class ScoreIs:
    """A score in a metric (by id or key) with such a value, for one of these reasons."""

    metric: str
    value: Number = Number()
    reasons: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class LabelIs:
    """A label of this key, with such a value."""

    key: str
    value: OneOf = OneOf()


@dataclass(frozen=True, slots=True)
class TextIs:
    """What a text must be, or must hold in any case of letters."""

    eq: str | None = None
    contains: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Conditions that must all hold; without any, every completion is wanted."""

    all_of: tuple[Where, ...] = ()
    any_of: tuple[Where, ...] = ()
    """At least one of these; none: no condition."""
    negated: Where | None = None
    since: int | None = None
    """UTC milliseconds, inclusive."""
    until: int | None = None
    """UTC milliseconds, inclusive."""
    model: OneOf | None = None
    """Ids or keys."""
    label: LabelIs | None = None
    score: ScoreIs | None = None
    comparison: str | None = None
    """Was compared in this metric (by id or key)."""
    sources: tuple[str, ...] | None = None
    prompt_hash: OneOf | None = None
    session_id: uuid.UUID | None = None
    created_by: OneOf | None = None
    """Ids or e-mail addresses."""
    completion_id: uuid.UUID | None = None
    completion: TextIs | None = None
    prompt: TextIs | None = None
    ids: tuple[uuid.UUID, ...] | None = None
    """One of these completions."""
    model_key: str | None = None
    """As groups by model are named: '' where nobody said which model it was."""


async def condition(session: AsyncSession, project_id: uuid.UUID, where: Where) -> ColumnElement[bool]:
    """The completions of a project that are wanted; `EntityNotFoundError` names a metric that is not there."""
    parts = list(_walk(where))
    if len(parts) > MAX_CONDITIONS:
        raise InvalidRequestError(f"a filter has at most {MAX_CONDITIONS} parts, got {len(parts)}", field="filter")
    if sum(len(part.ids or ()) for part in parts) > MAX_IDS:
        raise InvalidRequestError(
            f"at most {MAX_IDS} completions can be named one by one; use conditions for more", field="selection"
        )
    metrics: dict[str, uuid.UUID] = {}
    for part in parts:
        for name in (part.comparison, None if part.score is None else part.score.metric):
            if name is not None and name not in metrics:
                metrics[name] = (await metric_named(session, project_id, name)).id
    return and_(Completion.project_id == project_id, _all(where, metrics))


def _walk(where: Where) -> Iterator[Where]:
    waiting = [where]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += [*part.all_of, *part.any_of, *([] if part.negated is None else [part.negated])]


def _all(where: Where, metrics: Mapping[str, uuid.UUID]) -> ColumnElement[bool]:
    parts = [_all(part, metrics) for part in where.all_of]
    if where.any_of:
        parts.append(or_(*(_all(part, metrics) for part in where.any_of)))
    if where.negated is not None:
        # What is not known is not so: without this, its opposite would not be so either.
        parts.append(not_(func.coalesce(_all(where.negated, metrics), false())))
    return and_(true(), *parts, *_plain(where), *_identity(where), *_related(where, metrics))


def _plain(where: Where) -> Iterator[ColumnElement[bool]]:
    """Conditions on the completion itself."""
    if where.since is not None:
        yield Completion.created_at >= where.since
    if where.until is not None:
        yield Completion.created_at <= where.until
    if where.sources is not None:
        yield Completion.source.in_(where.sources)
    if where.session_id is not None:
        yield Completion.session_id == where.session_id
    if where.prompt_hash is not None:
        yield from _one_of(where.prompt_hash, lambda text: Completion.prompt_hash == text)
    for column, text in ((Completion.completion, where.completion), (Completion.prompt, where.prompt)):
        if text is not None and text.eq is not None:
            yield column == text.eq
        if text is not None and text.contains is not None:
            yield column.icontains(text.contains, autoescape=True)


def _identity(where: Where) -> Iterator[ColumnElement[bool]]:
    """Conditions on which completion it is, and on its group."""
    if where.completion_id is not None:
        yield Completion.id == where.completion_id
    if where.ids is not None:
        yield Completion.id.in_(where.ids)
    if where.model_key is not None:
        yield func.coalesce(Completion.model_key, "") == where.model_key


def _related(where: Where, metrics: Mapping[str, uuid.UUID]) -> Iterator[ColumnElement[bool]]:
    """Conditions on what belongs to the completion."""
    if where.model is not None:
        yield from _one_of(where.model, _has_model)
    if where.created_by is not None:
        yield from _one_of(where.created_by, _created_by)
    if where.label is not None:
        values = _one_of(where.label.value, lambda text: CompletionLabel.value == text)
        yield exists().where(
            CompletionLabel.completion_id == Completion.id, CompletionLabel.key == where.label.key, *values
        )
    if where.score is not None:
        yield _has_score(where.score, metrics)
    if where.comparison is not None:
        compared = or_(Comparison.preferred_id == Completion.id, Comparison.other_id == Completion.id)
        yield exists().where(compared, Comparison.metric_id == metrics[where.comparison])


def _one_of(wanted: OneOf, matches: Any) -> Iterator[ColumnElement[bool]]:
    if wanted.eq is not None:
        yield matches(wanted.eq)
    if wanted.any_of is not None:
        yield or_(false(), *(matches(text) for text in wanted.any_of))
    if wanted.neq is not None:
        yield not_(func.coalesce(matches(wanted.neq), false()))


def _has_model(text: str) -> ColumnElement[bool]:
    """By the id of the model or of its service in the project, or by key."""
    try:
        wanted = uuid.UUID(text)
    except ValueError:
        return Completion.model_key == text
    return or_(Completion.model_service_id == wanted, Completion.model_id == wanted, Completion.model_key == text)


def _created_by(text: str) -> ColumnElement[bool]:
    return Completion.created_by.in_(select(User.id).where(by_id_or_key(User.id, User.email, text)))


def _has_score(score: ScoreIs, metrics: Mapping[str, uuid.UUID]) -> ColumnElement[bool]:
    parts = [DirectScore.completion_id == Completion.id, DirectScore.metric_id == metrics[score.metric]]
    comparisons = {
        "eq": DirectScore.value.__eq__,
        "neq": DirectScore.value.__ne__,
        "gt": DirectScore.value.__gt__,
        "gte": DirectScore.value.__ge__,
        "lt": DirectScore.value.__lt__,
        "lte": DirectScore.value.__le__,
    }
    for item in fields(score.value):
        bound = getattr(score.value, item.name)
        if bound is not None:
            parts.append(comparisons[item.name](bound))
    if score.reasons is not None:
        parts.append(DirectScore.reason.in_(score.reasons))
    return exists().where(*parts)
