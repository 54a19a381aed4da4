"""Jobs: runs of recipes, their stages, and what they made."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row

COMPLETED, FAILED, CANCELED = "COMPLETED", "FAILED", "CANCELED"
ACTIVE, TERMINAL = ("PENDING", "RUNNING"), (COMPLETED, FAILED, CANCELED)
"""Statuses of jobs that have yet to end, and of those that have."""


class Job(Row, Base):
    """One run of a recipe, or the import of a model; see `ModelImport` for what is known of the latter."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "project_id", "created_at"), Index(None, "status", "created_at"))

    project_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    """None: an import, which is for every project."""
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    status: Mapped[str] = mapped_column(String(16), default="PENDING")
    """`PENDING`, `RUNNING`, `COMPLETED`, `FAILED` or `CANCELED`; the last three are for good."""
    recipe_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """Built-in recipes have no row. None: an import."""
    recipe_key: Mapped[str] = mapped_column(String(MAX_KEY))
    content_hash: Mapped[str | None] = mapped_column(ForeignKey("recipe_codes.content_hash"), index=True)
    """The version of the recipe that runs, whatever becomes of the recipe. None: an import."""
    entrypoint: Mapped[str] = mapped_column(String(MAX_KEY))
    args: Mapped[dict[str, Any]] = mapped_column(default=dict)
    compute_pool: Mapped[str | None] = mapped_column(String(MAX_KEY))
    """Key of the pool whose devices it uses; None: the first that runs jobs."""
    num_gpus: Mapped[int]
    """Devices of the pool."""
    max_ram_gb: Mapped[float | None] = mapped_column(Float)
    """Memory of the recipe's process, in 2^30 bytes."""
    max_duration_s: Mapped[int | None]
    """From the start of the recipe, each time that it starts."""
    resume_artifact_id: Mapped[uuid.UUID | None]
    """The checkpoint with which it begins, until it has made one of its own."""
    created_by: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id"), index=True)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)
    heartbeat_at: Mapped[int | None] = mapped_column(BigInteger)
    restarts: Mapped[int] = mapped_column(default=0, server_default="0")
    """How often a server died while it ran."""
    error: Mapped[str | None] = mapped_column(Text)
    """The traceback of what ended it, or the reason in words."""
    deleted_at: Mapped[int | None] = mapped_column(BigInteger)


class JobStage(Row, Base):
    """A part of a job."""

    __tablename__ = "job_stages"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    place: Mapped[int]
    """From 0, in the order in which they run."""
    parent: Mapped[str | None] = mapped_column(String(MAX_KEY))
    """The one before it."""
    kind: Mapped[str] = mapped_column(String(8), default="train")
    """`train` or `eval`, as it was reported."""
    total: Mapped[int | None] = mapped_column(BigInteger)
    """Samples to process."""
    processed: Mapped[int | None] = mapped_column(BigInteger)
    """Samples processed."""
    monitoring_link: Mapped[str | None] = mapped_column(Text)
    checkpoints: Mapped[list[Any]] = mapped_column(default=list)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)


class JobArtifact(Row, Base):
    """Something that a job made."""

    __tablename__ = "job_artifacts"

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    kind: Mapped[str] = mapped_column(String(16))
    """`EVALUATION`, `CUSTOM`, `DATASET`, `MODEL` or `CHECKPOINT`."""
    status: Mapped[str] = mapped_column(String(16), default="READY")
    """`PENDING`, `PROCESSING`, `READY` or `ERROR`."""
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What the recipe said of it."""
    file: Mapped[str | None] = mapped_column(Text)
    """Where its content is kept; None: it has none."""
    results: Mapped[list[Any]] = mapped_column(default=list)
    """Of an evaluation: statistics for each model and grader."""


def progress_of(job: Job, stages: Sequence[JobStage]) -> float:
    """From 0 to 1: the mean of the stages."""
    if job.status == COMPLETED:
        return 1.0
    if not stages:
        return 0.0
    shares = [min(1.0, (stage.processed or 0) / stage.total) if stage.total else 0.0 for stage in stages]
    return sum(shares) / len(shares)
