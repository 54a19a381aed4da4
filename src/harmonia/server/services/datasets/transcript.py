"""Interactions as rows of data sets, in the form that people upload."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any

from harmonia.errors import InvalidRequestError
from harmonia.server.services.datasets.rows import PROMPT, SCORE, parse_row
from harmonia.server.services.interactions.details import ComparisonInfo, CompletionInfo
from harmonia.server.services.metrics import BOOL


def row_of(
    info: CompletionInfo, kind: str, metrics: Collection[uuid.UUID] | None, scores_count: bool
) -> dict[str, Any]:
    """A completion as a row. metrics: whose scores it has, the last one of each; None: all."""
    row: dict[str, Any] = _prompt(info)
    if kind != PROMPT:
        row["completion"] = info.row.completion
    if kind == SCORE and scores_count:
        row["feedbacks"] = {
            item.metric.row.key: bool(item.row.value) if item.metric.row.kind == BOOL else item.row.value
            for item in info.scores
            if metrics is None or item.metric.row.id in metrics
        }
    return _checked(row, info.row.id)


def preference_row(info: ComparisonInfo) -> dict[str, Any]:
    """A comparison as a row."""
    preferred = info.preferred.row
    row = {
        "messages": _messages(preferred.messages),
        "preferred_completion": preferred.completion,
        "other_completion": info.other.row.completion,
        "feedback_key": info.metric.row.key,
        "metadata": {"comparison_id": str(info.row.id)},
    }
    return _checked(row, preferred.id)


def _prompt(info: CompletionInfo) -> dict[str, Any]:
    row = info.row
    known = {"completion_id": str(row.id), "session_id": str(row.session_id), "model": row.model_key}
    found: dict[str, Any] = {"messages": _messages(row.messages), "metadata": {**(row.user_metadata or {}), **known}}
    if info.labels:
        found["labels"] = {label.key: label.value for label in info.labels}
    return found


def _checked(row: dict[str, Any], completion_id: uuid.UUID) -> dict[str, Any]:
    try:
        parse_row(row)
    except InvalidRequestError as error:
        raise InvalidRequestError(
            f"completion {completion_id} cannot be a row: {error.message}; leave it out of the selection",
            field="completionQuery",
        ) from error
    return row


def _messages(messages: list[Any]) -> list[dict[str, Any]]:
    return [{"role": str(message.get("role")), "content": _content(message)} for message in messages]


def _content(message: Mapping[str, Any]) -> str | list[dict[str, Any]]:
    content = message.get("content") or ""
    calls = message.get("tool_calls") or ()
    if message.get("role") == "tool" and isinstance(content, str):
        response = {"type": "tool_response", "content": content, "call_id": message.get("tool_call_id")}
        return [{name: value for name, value in response.items() if value is not None}]
    if isinstance(content, str) and not calls:
        return content
    parts = [_part(part) for part in content] if isinstance(content, list) else []
    if isinstance(content, str) and content:
        parts = [{"type": "text", "text": content}]
    return [*parts, *(_call(call) for call in calls)]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part.get("type") != "image_url":
        return {name: value for name, value in part.items() if value is not None}
    image = part.get("image_url")
    return {"type": "image", "url": image.get("url") if isinstance(image, Mapping) else image}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or call
    return {
        "type": "function_call",
        "call_id": str(call.get("id") or ""),
        "name": str(function.get("name")),
        "arguments": str(function.get("arguments")),
    }
