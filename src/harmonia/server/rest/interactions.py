"""Interactions that happened elsewhere, and what people say about any of them."""

from __future__ import annotations

import uuid
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response

from harmonia.errors import InvalidRequestError
from harmonia.server.rest.body import read_body
from harmonia.server.rest.callers import KnownCaller, Server
from harmonia.server.services.interactions.feedback import Answer, NewComparison, NewScore
from harmonia.server.services.interactions.interactions import NewInteraction
from harmonia.server.services.moments import moment_ms

router = APIRouter(tags=["interactions"])

_encode = msgspec.json.Encoder().encode


class Part(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A piece of a message: a text, or the address of an image."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: str | dict[str, Any] | None = None


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One message of a chat."""

    role: str
    content: str | list[Part]
    name: str | None = None
    completion_id: uuid.UUID | None = None
    metadata: Any = None


class InteractionFeedback(msgspec.Struct, forbid_unknown_fields=True):
    """A score that comes with an interaction."""

    metric: str
    value: Any
    reason: str | None = None
    details: str | None = None
    created_at: str | int | None = None


class InteractionRequest(msgspec.Struct, forbid_unknown_fields=True):
    """An interaction that happened elsewhere."""

    project: str
    messages: list[ChatMessage]
    completion: str
    model_service: str | None = None
    feedbacks: list[InteractionFeedback] | None = None
    user: uuid.UUID | None = None
    session_id: uuid.UUID | None = None
    created_at: str | int | None = None
    labels: dict[str, str] | None = None


class FeedbackRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A score of a completion."""

    completion_id: str
    metric: str
    value: Any
    reason: str | None = None
    details: str | None = None
    user_id: uuid.UUID | None = None


class AnswerText(msgspec.Struct, forbid_unknown_fields=True):
    """A completion that was not recorded."""

    text: str
    model: str


class ComparisonRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which of two completions was better."""

    project: str
    metric: str
    preferred_completion: str | AnswerText
    other_completion: str | AnswerText
    messages: list[ChatMessage] | None = None
    tied: Literal["good", "bad"] | None = None
    user_id: uuid.UUID | None = None


class OutcomeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A value of a whole session. project_id: another name of `project`."""

    session_id: uuid.UUID
    metric: str
    value: Any
    project: str | None = None
    project_id: str | None = None
    reason: str | None = None
    details: str | None = None
    user_id: uuid.UUID | None = None


@router.post("/interactions", status_code=201)
async def create_interaction(request: Request, services: Server, caller: KnownCaller) -> Response:
    """Record an interaction, with scores if there are any."""
    body = await read_body(request, InteractionRequest, services.config.server.max_body_bytes)
    if not body.messages:
        raise InvalidRequestError("messages: give at least one message", field="messages")
    new = NewInteraction(
        messages=_plain(body.messages),
        completion=body.completion,
        model=body.model_service,
        session_id=body.session_id,
        user=_text(body.user),
        labels=body.labels or {},
        scores=[_score(item, f"feedbacks[{place}]") for place, item in enumerate(body.feedbacks or [])],
        created_at=_moment(body.created_at, "created_at"),
    )
    done = await services.interactions.create(caller, body.project, new)
    ids = [str(score_id) for score_id in done.score_ids]
    answer = {"completion_id": str(done.completion_id), "session_id": str(done.session_id), "feedback_ids": ids}
    return _json(answer)


@router.post("/feedback", status_code=201)
async def create_feedback(request: Request, services: Server, caller: KnownCaller) -> Response:
    """Score a completion in a metric."""
    body = await read_body(request, FeedbackRequest, services.config.server.max_body_bytes)
    new = NewScore(
        metric=body.metric, value=body.value, reason=body.reason, details=body.details, user=_text(body.user_id)
    )
    score = await services.feedback.score(caller, _completion_id(body.completion_id, "completion_id"), new)
    return _json({"feedback_id": str(score.row.id)})


@router.post("/comparison", status_code=201)
async def create_comparison(request: Request, services: Server, caller: KnownCaller) -> Response:
    """Say which of two completions of one prompt is better, or that neither is."""
    body = await read_body(request, ComparisonRequest, services.config.server.max_body_bytes)
    new = NewComparison(
        metric=body.metric,
        preferred=_side(body.preferred_completion, "preferred_completion"),
        other=_side(body.other_completion, "other_completion"),
        messages=_plain(body.messages or []),
        tie=body.tied,
        user=_text(body.user_id),
    )
    row = await services.feedback.compare(caller, body.project, new)
    return _json({"comparison_id": str(row.id)})


@router.post("/outcome", status_code=201)
async def create_outcome(request: Request, services: Server, caller: KnownCaller) -> Response:
    """Give a whole session a value in a metric."""
    body = await read_body(request, OutcomeRequest, services.config.server.max_body_bytes)
    new = NewScore(
        metric=body.metric, value=body.value, reason=body.reason, details=body.details, user=_text(body.user_id)
    )
    row = await services.feedback.outcome(caller, body.session_id, new, body.project or body.project_id)
    return _json({"outcome_id": str(row.id)})


def _side(item: str | AnswerText, field: str) -> uuid.UUID | Answer:
    return Answer(item.text, item.model) if isinstance(item, AnswerText) else _completion_id(item, field)


def _completion_id(text: str, field: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"{field}: {text[:80]!r} is no id of a completion; an answer has it in choices[].completion_id, not in id",
            field=field,
        ) from error


def _score(item: InteractionFeedback, field: str) -> NewScore:
    created_at = _moment(item.created_at, f"{field}.created_at")
    return NewScore(
        metric=item.metric, value=item.value, reason=item.reason, details=item.details, created_at=created_at
    )


def _moment(value: str | int | None, field: str) -> int | None:
    return None if value is None else moment_ms(value, field)


def _plain(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = msgspec.to_builtins(messages)
    return plain


def _text(user: uuid.UUID | None) -> str | None:
    return None if user is None else str(user)


def _json(body: dict[str, Any]) -> Response:
    return Response(_encode(body), 201, media_type="application/json")
