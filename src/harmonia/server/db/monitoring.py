"""Curves, tables and distributions that training runs report."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class MonitoringRun(Row, Base):
    """One run that reports."""

    __tablename__ = "monitoring_runs"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    config: Mapped[dict[str, Any]] = mapped_column(default=dict)
    status: Mapped[str] = mapped_column(String(16), default="running")
    """`running`, `finished`, `failed` or `crashed`."""
    ended_at: Mapped[int | None] = mapped_column(BigInteger)
    last_metric_at: Mapped[int | None] = mapped_column(BigInteger)


class MonitoringPoint(Base):
    """One value of one curve. A later value for the same step replaces nothing: both are kept, in order."""

    __tablename__ = "monitoring_points"
    __table_args__ = (Index(None, "run_id", "name", "step"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("monitoring_runs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    step: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[float]
    logged_at: Mapped[int] = mapped_column(BigInteger)
    """UTC milliseconds, by the clock of whoever logged."""


class MonitoringTable(Row, Base):
    """A table at one step."""

    __tablename__ = "monitoring_tables"
    __table_args__ = (UniqueConstraint("run_id", "name", "step"),)

    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("monitoring_runs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    step: Mapped[int] = mapped_column(BigInteger)
    columns: Mapped[list[Any]]
    """Objects with a `name`, perhaps a `type`."""
    row_count: Mapped[int] = mapped_column(Integer, default=0)


class MonitoringTableRows(Row, Base):
    """Rows that came in one request, in the order of `position`."""

    __tablename__ = "monitoring_table_rows"
    __table_args__ = (UniqueConstraint("table_id", "position"),)

    table_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("monitoring_tables.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    """The number of the first of them."""
    rows: Mapped[list[Any]]


class MonitoringCategorical(Row, Base):
    """A distribution over labels at one step."""

    __tablename__ = "monitoring_categorical"
    __table_args__ = (UniqueConstraint("run_id", "name", "step"),)

    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("monitoring_runs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    step: Mapped[int] = mapped_column(BigInteger)
    labels: Mapped[list[Any]]
    values: Mapped[list[Any]]
    series: Mapped[list[Any]] = mapped_column(default=list)
    """Objects of `name` and `values`."""
