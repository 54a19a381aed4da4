"""Models, sessions and the state of the server."""

from __future__ import annotations

from harmonia.server.rest.schemas.fields import JsonValue, ResponseModel


class ModelCard(ResponseModel, kw_only=True, omit_defaults=False):
    """A model that this server answers for."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "harmonia"
    parent: str | None = None
    """Key of the backbone, for an adapter."""
    version: int = 0
    max_model_len: int | None = None
    """Longest prompt plus answer, in tokens."""


class ModelList(ResponseModel, kw_only=True, omit_defaults=False):
    """Every model."""

    data: list[ModelCard]
    object: str = "list"


class Deleted(ResponseModel, kw_only=True, omit_defaults=False):
    """What was removed."""

    id: str
    object: str
    deleted: bool = True


class WorkerHealth(ResponseModel, kw_only=True):
    """One worker."""

    replica: str
    model: str
    state: str
    restarts: int
    progress: str = ""
    error: dict[str, JsonValue] | None = None


class Health(ResponseModel, kw_only=True):
    """Whether requests will be answered."""

    status: str
    """`ready`, `loading` or `failed`."""
    models: list[str]
    workers: list[WorkerHealth]
