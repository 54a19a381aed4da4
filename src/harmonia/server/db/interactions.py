"""What was asked and answered, with the labels that callers gave."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row

MAX_VALUE = 1024
"""Characters of a label's value."""


class Completion(Row, Base):
    """One answer of a model to one prompt. It outlives the model that gave it."""

    __tablename__ = "completions"
    __table_args__ = (
        Index(None, "project_id", "created_at", "id"),
        Index(None, "project_id", "model_key"),
        Index(None, "project_id", "prompt_hash"),
        # Figures read this one alone, and never the texts: half a second for a million answers.
        Index(
            "ix_completions_usage",
            "project_id",
            "created_at",
            "source",
            "model_id",
            "created_by",
            "prompt_tokens",
            "completion_tokens",
        ),
    )

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(16))
    """LIVE, OFFLINE, AUTOMATION, DATASET or EVALUATION."""
    model_key: Mapped[str | None] = mapped_column(String(MAX_KEY))
    """The key under which the project served the model; None: nobody said which model it was."""
    model_service_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    model_id: Mapped[uuid.UUID | None]
    messages: Mapped[list[Any]]
    """The chat, each message with `role` and `content`."""
    prompt: Mapped[str] = mapped_column(Text)
    """The texts of all messages, to be searched."""
    prompt_hash: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the messages: equal for equal prompts."""
    completion: Mapped[str] = mapped_column(Text)
    session_id: Mapped[uuid.UUID] = mapped_column(index=True)
    user: Mapped[str | None] = mapped_column("end_user", String(MAX_KEY), key="user")
    """Whom the caller asked for."""
    created_by: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """Who called."""
    ab_campaign_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """The A/B test that chose the model."""
    parameters: Mapped[dict[str, Any] | None]
    timings: Mapped[dict[str, Any] | None]
    usage: Mapped[dict[str, Any] | None]
    """`prompt_tokens`, `completion_tokens` and `total_tokens`."""
    prompt_tokens: Mapped[int | None]
    """Of `usage`, to be summed."""
    completion_tokens: Mapped[int | None]
    """Of `usage`, to be summed."""
    user_metadata: Mapped[dict[str, Any] | None]
    """What people wrote about it afterwards."""


class CompletionLabel(Base):
    """One label of a completion."""

    __tablename__ = "completion_labels"
    __table_args__ = (Index(None, "key", "value"),)

    completion_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("completions.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(MAX_KEY), primary_key=True)
    value: Mapped[str] = mapped_column(String(MAX_VALUE))
