"""Metrics, and what people and graders say in them."""

from __future__ import annotations

import uuid

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class Metric(Row, Base):
    """Something that completions of a project are measured by."""

    __tablename__ = "metrics"
    __table_args__ = (UniqueConstraint("project_id", "key"),)

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(MAX_KEY))
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    kind: Mapped[str] = mapped_column(String(16))
    """SCALAR or BOOL."""
    scoring_type: Mapped[str] = mapped_column(String(32))
    """HIGHER_IS_BETTER or LOWER_IS_BETTER."""
    category: Mapped[str] = mapped_column(String(16), default="USER")
    """SYSTEM, GRADER or USER: who writes its scores."""
    description: Mapped[str] = mapped_column(Text, default="")
    unit: Mapped[str | None] = mapped_column(String(64))
    deleted_at: Mapped[int | None] = mapped_column(BigInteger)
    """Kept since scores name it; its key is then one that nobody can give."""


class DirectScore(Row, Base):
    """A value that a completion got."""

    __tablename__ = "direct_scores"
    __table_args__ = (
        Index(None, "completion_id", "metric_id"),
        Index("ix_direct_scores_figures", "metric_id", "created_at", "value", "completion_id"),  # all that charts read
    )

    completion_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("completions.id", ondelete="CASCADE"))
    metric_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("metrics.id", ondelete="CASCADE"))
    value: Mapped[float]
    """Of a BOOL metric 0 or 1."""
    source: Mapped[str] = mapped_column(String(16), default="USER")
    """GRADER, USER, SYSTEM or UNKNOWN."""
    reason: Mapped[str | None] = mapped_column(Text)
    details: Mapped[str | None] = mapped_column(Text)
    user: Mapped[str | None] = mapped_column("end_user", String(MAX_KEY))
    """Whom the caller asked for."""
    created_by: Mapped[uuid.UUID | None]


class Comparison(Row, Base):
    """Which of two completions of one prompt was better."""

    __tablename__ = "comparisons"
    __table_args__ = (Index(None, "metric_id", "created_at"),)

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    metric_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("metrics.id", ondelete="CASCADE"))
    preferred_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("completions.id", ondelete="CASCADE"), index=True)
    other_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("completions.id", ondelete="CASCADE"), index=True)
    tie: Mapped[str | None] = mapped_column(String(8))
    """`good` or `bad`: neither was better; None: the preferred one was."""
    user: Mapped[str | None] = mapped_column("end_user", String(MAX_KEY))
    """Whom the caller asked for."""
    created_by: Mapped[uuid.UUID | None]


class Outcome(Row, Base):
    """A value that a whole session got."""

    __tablename__ = "outcomes"
    __table_args__ = (Index(None, "session_id", "metric_id"),)

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    metric_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("metrics.id", ondelete="CASCADE"), index=True)
    session_id: Mapped[uuid.UUID]
    value: Mapped[float]
    reason: Mapped[str | None] = mapped_column(Text)
    details: Mapped[str | None] = mapped_column(Text)
    user: Mapped[str | None] = mapped_column("end_user", String(MAX_KEY))
    """Whom the caller asked for."""
    created_by: Mapped[uuid.UUID | None]
