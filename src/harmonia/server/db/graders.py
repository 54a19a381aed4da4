"""Graders, and the servers outside that score."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row, now_ms


class Grader(Row, Base):
    """What scores the completions of a project, into a metric of its own."""

    __tablename__ = "graders"
    __table_args__ = (UniqueConstraint("project_id", "key"),)

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    metric_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("metrics.id"), index=True)
    model_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("models.id"), index=True)
    """The model that judges; None for graders that are no judges."""
    key: Mapped[str] = mapped_column(String(MAX_KEY))
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    kind: Mapped[str] = mapped_column(String(16))
    """JUDGE, PREBUILT, REMOTE, CUSTOM or FUNCTION."""
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What the kind needs; `services.grader_configs` says which."""
    locked: Mapped[bool] = mapped_column(default=False)
    """Whether it is kept from changes."""
    updated_at: Mapped[int] = mapped_column(BigInteger, default=now_ms, onupdate=now_ms)


class RemoteEnv(Row, Base):
    """A server outside that scores, for every project."""

    __tablename__ = "remote_envs"

    key: Mapped[str] = mapped_column(String(MAX_KEY), unique=True)
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text, default="")
    version: Mapped[str] = mapped_column(String(MAX_KEY), default="")
    metadata_schema: Mapped[dict[str, Any] | None]
    """JSON schema of what it wants to know beside the conversation."""
