"""A/B tests: models of a project that share its traffic until one of them proves better."""

from __future__ import annotations

import uuid

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class AbCampaign(Row, Base):
    """One test. It begins when it is made."""

    __tablename__ = "ab_campaigns"
    __table_args__ = (Index(None, "project_id", "status"), Index(None, "metric_id", "status"))

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    metric_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("metrics.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(MAX_KEY), unique=True)
    """Unique among all projects, since clients name a test without its project."""
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    score_type: Mapped[str] = mapped_column(String(16))
    """DIRECT or COMPARISON."""
    traffic_split: Mapped[float]
    """Share from 0 to 1 of the requests without a model that take part."""
    auto_deploy: Mapped[bool]
    """The winner becomes the default of the project."""
    status: Mapped[str] = mapped_column(String(16), default="WARMUP")
    """WARMUP, IN_PROGRESS, DONE or CANCELLED."""
    has_enough: Mapped[bool] = mapped_column(default=False)
    """Every variant has the scores that a decision needs."""
    num_scores: Mapped[int] = mapped_column(default=0)
    next_look: Mapped[int] = mapped_column(default=1)
    """Number of scores at which a decision is sought again."""
    ended_at: Mapped[int | None] = mapped_column(BigInteger)
    winner_id: Mapped[uuid.UUID | None]
    """The service that won."""


class AbVariant(Base):
    """A model that takes part."""

    __tablename__ = "ab_variants"

    campaign_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("ab_campaigns.id", ondelete="CASCADE"), primary_key=True)
    model_service_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("model_services.id"), primary_key=True)
    place: Mapped[int]
    """In the order in which they were named."""
