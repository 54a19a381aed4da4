"""Models of the registry, the projects that use them, and the devices on which they run."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class Model(Row, Base):
    """A base model, an adapter of one, or a model at somebody else's."""

    __tablename__ = "models"

    key: Mapped[str] = mapped_column(String(MAX_KEY), unique=True)
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    kind: Mapped[str] = mapped_column(String(16))
    """`base`, `adapter`, `draft` or `external`. A draft is a whole model that proposes tokens to another; what answers
    under its key is that one, with it."""
    source: Mapped[str | None] = mapped_column(Text)
    """Absolute path, or `model_registry://KEY`; None: external."""
    backbone_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("models.id"), index=True)
    """Of an adapter: its base model. Of a draft: the base model or the adapter for which it drafts."""
    parent_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("models.id"), index=True)
    """What it was trained from."""
    job_id: Mapped[uuid.UUID | None] = mapped_column(index=True)
    """The job that made or imported it; the files are then this server's own."""
    family: Mapped[str | None] = mapped_column(String(64))
    size: Mapped[int | None] = mapped_column(BigInteger)
    """Number of parameters; of an adapter or a draft its own."""
    capabilities: Mapped[list[Any]] = mapped_column(default=list)
    """Of `TextGeneration`, `Embedding`, `Regression`."""
    is_trainable: Mapped[bool] = mapped_column(default=True)
    """False for external models and quantised files."""
    native_seq_len: Mapped[int | None]
    """Tokens that the model was made for."""
    compute: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """What was set of `tp`, `kv_cache_len`, `max_seq_len` and `tokens_to_generate`."""
    external: Mapped[dict[str, Any] | None]
    """Of an external model: `provider`, `external_model_id`, `endpoint`, `extra_params`."""
    secret: Mapped[str | None] = mapped_column(Text)
    """Its provider's API key, encrypted."""
    num_draft_steps: Mapped[int | None]
    """Of a draft: tokens that it proposes at a time, as it was saved."""
    is_training: Mapped[bool] = mapped_column(default=False)
    is_published: Mapped[bool] = mapped_column(default=True)
    is_stable: Mapped[bool] = mapped_column(default=False)
    online: Mapped[str] = mapped_column(String(16), default="OFFLINE")
    """Observed: `ONLINE`, `PENDING`, `OFFLINE` or `ERROR`."""
    error: Mapped[str | None] = mapped_column(Text)
    """Observed: why it cannot be served, or not as wanted."""
    deleted_at: Mapped[int | None] = mapped_column(BigInteger)
    """Kept since interactions name it; its key is then one that nobody can give."""


class ModelImport(Row, Base):
    """A model of the Hugging Face hub that a job brings, or has brought."""

    __tablename__ = "model_imports"

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    hub_id: Mapped[str] = mapped_column(String(MAX_KEY), index=True)
    """`OWNER/NAME`, of a single GGUF file `OWNER/NAME/FILE`."""
    key: Mapped[str] = mapped_column(String(MAX_KEY), index=True)
    """Of the model that it becomes."""
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    token: Mapped[str | None] = mapped_column(Text)
    """What the hub wants to see, encrypted; erased when the job has ended."""


class ModelService(Row, Base):
    """A model in a project. Kept when the model is taken out, since interactions name it."""

    __tablename__ = "model_services"
    __table_args__ = (
        UniqueConstraint("project_id", "model_id"),
        Index(None, "project_id", "key"),
        Index(None, "project_id", "is_default"),
    )

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("models.id"), index=True)
    key: Mapped[str] = mapped_column(String(MAX_KEY))
    """The model's key."""
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    is_default: Mapped[bool] = mapped_column(default=False)
    """Answers requests that name the project only."""
    desired_online: Mapped[bool] = mapped_column(default=False)
    pools: Mapped[list[Any]] = mapped_column(default=list)
    """Keys of the compute pools on which it may run; empty: any."""
    max_ttft_ms: Mapped[int | None]
    """Bound on the time to the first token; None: the server's."""
    num_draft_steps: Mapped[int | None]
    """Tokens that are proposed at a time. None: of a draft, what it was saved with; of others, none."""
    system_prompt_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("system_prompt_templates.id"), index=True)
    """What its chats begin with."""
    deleted_at: Mapped[int | None] = mapped_column(BigInteger)
    """When the model was taken out of the project."""


class ComputePool(Row, Base):
    """Devices that belong together."""

    __tablename__ = "compute_pools"

    key: Mapped[str] = mapped_column(String(MAX_KEY), unique=True)
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    capabilities: Mapped[list[Any]] = mapped_column(default=list)
    """Of `INFERENCE`, `JOB`."""
    num_devices: Mapped[int] = mapped_column(default=0)
    """GPUs; 1 where the CPU computes."""
    num_inference: Mapped[int] = mapped_column(default=0)
    """Of these, how many serve; without any nothing is served here."""
    device_types: Mapped[str] = mapped_column(String(MAX_KEY), default="CPU")
