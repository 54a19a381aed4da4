"""Models that a job makes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from harmonia.client.artifacts.base import ArtifactContext, ArtifactProcessingMode, BaseArtifact
from harmonia.client.identifiers import uuid_v7


class ModelArtifact(BaseArtifact):
    """A saved model, by its key in the registry. It is registered at once."""

    def __init__(self, key: str, ctx: ArtifactContext, **metadata: Any) -> None:
        self._model_key = key
        mode = ArtifactProcessingMode.ON_REGISTRATION
        super().__init__(ctx, uuid_v7(), key, "model", processing_mode=mode, **{"model_key": key, **metadata})

    @property
    def model_key(self) -> str:
        """The key in the registry."""
        return self._model_key


class Savable(Protocol):
    """A model that can be saved: `TrainingModel`."""

    async def save(self, model_name: str, inference_only: bool = True) -> str:
        """Write it into the registry; the key that it got."""


ModelT = TypeVar("ModelT", bound=Savable)


async def save_with_artifact(
    model: ModelT,
    model_name: str,
    inference_only: bool = True,
    ctx: ArtifactContext | None = None,
    original_save_method: Callable[[ModelT, str, bool], Awaitable[str]] | None = None,
) -> str:
    """Save a model, by default with its own `save`; with a context also register it under the key that it got."""
    save = original_save_method or type(model).save
    key = await save(model, model_name, inference_only)
    if ctx is not None:
        ModelArtifact(key, ctx)
    return key
