"""Where a team is told what happens: its integrations, and the messages that are still on their way."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row, now_ms


class Integration(Row, Base):
    """A connection of a team to a service outside."""

    __tablename__ = "integrations"

    team_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    provider: Mapped[str] = mapped_column(String(32))
    """`slack`, `smtp`, `webhook` or `github`."""
    sealed: Mapped[str] = mapped_column(Text)
    """The connection with its passwords and tokens, encrypted."""
    subscriptions: Mapped[list[Any]] = mapped_column(default=list)
    """Objects of `topic_pattern`, `scope` and `target_filter`."""
    retries: Mapped[bool] = mapped_column(default=True)
    """Whether a delivery is repeated until it is received."""
    enabled: Mapped[bool] = mapped_column(default=True)


class Delivery(Row, Base):
    """One message to one integration: a row of the outbox."""

    __tablename__ = "deliveries"
    __table_args__ = (Index(None, "state", "due_at"),)

    integration_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("integrations.id", ondelete="CASCADE"), index=True)
    event_id: Mapped[uuid.UUID] = mapped_column(index=True)
    topic: Mapped[str] = mapped_column(String(512))
    payload: Mapped[dict[str, Any]] = mapped_column(default=dict)
    state: Mapped[str] = mapped_column(String(16), default="waiting")
    """`waiting`, `sent` or `failed`."""
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    due_at: Mapped[int] = mapped_column(BigInteger, default=now_ms)
    """When to try next."""
    error: Mapped[str | None] = mapped_column(Text)
    """What went wrong at the last attempt."""
    ended_at: Mapped[int | None] = mapped_column(BigInteger)
