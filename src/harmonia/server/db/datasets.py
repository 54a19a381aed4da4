"""Data sets, and the metrics that their rows speak of."""

from __future__ import annotations

import uuid

from sqlalchemy import BigInteger, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class Dataset(Row, Base):
    """Rows to train, evaluate or generate from, in two files: as uploaded, and as recipes read them."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("project_id", "key"),)

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    key: Mapped[str | None] = mapped_column(String(MAX_KEY))
    """None once it has failed, so that another try may have the key."""
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    source: Mapped[str] = mapped_column(String(16))
    """UPLOADED, GENERATED, GENERATING or FILTERED."""
    status: Mapped[str] = mapped_column(String(16), index=True)
    """PENDING, PROCESSING, READY or FAILED."""
    kind: Mapped[str] = mapped_column(String(32))
    """PROMPT, PROMPT_COMPLETION, PROMPT_COMPLETION_SCORE or PREFERENCE; before READY what the rows so far suggest."""
    created_by: Mapped[uuid.UUID | None]
    original: Mapped[str] = mapped_column(String(64))
    """The uploaded file's name in the store."""
    converted: Mapped[str] = mapped_column(String(64))
    """The name of the file that recipes read."""
    upload_id: Mapped[uuid.UUID | None]
    """The upload that the original is still to be assembled from."""
    records: Mapped[int | None] = mapped_column(BigInteger)
    """Rows; None before READY."""
    processed_lines: Mapped[int] = mapped_column(BigInteger, default=0)
    progress: Mapped[float] = mapped_column(default=0.0)
    """From 0 to 1, by bytes."""
    error: Mapped[str | None] = mapped_column(Text)
    """Why it failed."""


class DatasetMetric(Base):
    """How often the rows of a data set speak of a metric."""

    __tablename__ = "dataset_metrics"

    dataset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True)
    metric_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("metrics.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    score_count: Mapped[int] = mapped_column(BigInteger)
    comparison_count: Mapped[int] = mapped_column(BigInteger)
