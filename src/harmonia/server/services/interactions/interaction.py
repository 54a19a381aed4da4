"""One answer to one prompt, as it is kept."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from harmonia.errors import InvalidRequestError
from harmonia.server.db.base import MAX_KEY, now_ms
from harmonia.server.db.interactions import MAX_VALUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One answer to one prompt. The caller makes its id, so that the answer can carry it before it is written."""

    project_id: uuid.UUID
    messages: Sequence[Mapping[str, Any]]
    """The chat, each message with `role` and `content` (a text, or parts)."""
    completion: str
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    model_key: str | None = None
    """The key under which the project serves the model."""
    model_service_id: uuid.UUID | None = None
    model_id: uuid.UUID | None = None
    session_id: uuid.UUID = field(default_factory=uuid.uuid4)
    user: str | None = None
    """Whom the caller asked for."""
    labels: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] | None = None
    timings: Mapping[str, Any] | None = None
    """Milliseconds, such as `ttft_ms`; and `spec_dec_acceptance_rate`, the share of a draft's proposals that was
    right, where one proposed tokens to this answer."""
    usage: Mapping[str, int] | None = None
    """`prompt_tokens`, `completion_tokens` and `total_tokens`; where a draft proposed tokens to this answer,
    `accepted_prediction_tokens` and `rejected_prediction_tokens`, too."""
    created_by: uuid.UUID | None = None
    ab_campaign_id: uuid.UUID | None = None
    source: str = "LIVE"
    created_at: int = field(default_factory=now_ms)
    """UTC milliseconds."""


def prompt_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """Equal for equal roles, texts and images, whatever else the messages hold."""
    plain = [[message.get("role"), text_of(message), images_of(message)] for message in messages]
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, without its images."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and "text" in part)


def images_of(message: Mapping[str, Any]) -> list[Any]:
    """The parts of a message that are no text."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return [part for part in parts if not (isinstance(part, Mapping) and "text" in part)]


def checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Labels that can be kept; `InvalidRequestError` for longer ones. To be asked before the answer is generated."""
    for key, value in labels.items():
        if not 0 < len(key) <= MAX_KEY or len(value) > MAX_VALUE:
            raise InvalidRequestError(
                f"the label {key[:80]!r}: keys have 1 to {MAX_KEY} characters, values at most {MAX_VALUE}; got "
                f"{len(key)} and {len(value)}",
                field="labels",
            )
    return labels


def rows_of(item: Interaction) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The completion's row and its labels' rows."""
    row = {
        "id": item.id,
        "created_at": item.created_at,
        "project_id": item.project_id,
        "source": item.source,
        "model_key": item.model_key,
        "model_service_id": item.model_service_id,
        "model_id": item.model_id,
        "messages": [dict(message) for message in item.messages],
        "prompt": _storable("\n".join(text_of(message) for message in item.messages)),
        "prompt_hash": prompt_hash(item.messages),
        "completion": _storable(item.completion),
        "session_id": item.session_id,
        "user": item.user,
        "created_by": item.created_by,
        "ab_campaign_id": item.ab_campaign_id,
        "parameters": None if item.parameters is None else dict(item.parameters),
        "timings": None if item.timings is None else dict(item.timings),
        "usage": None if item.usage is None else dict(item.usage),
        "prompt_tokens": (item.usage or {}).get("prompt_tokens"),
        "completion_tokens": (item.usage or {}).get("completion_tokens"),
    }
    labels = [
        {"completion_id": item.id, "key": _storable(key), "value": _storable(value)}
        for key, value in item.labels.items()
    ]
    return row, labels


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL in a text, and no database half a surrogate pair."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
