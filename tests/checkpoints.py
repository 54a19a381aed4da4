"""Saving under a key and reading back, as the engine does it with a worker's registry."""

from __future__ import annotations

from pathlib import Path

from harmonia.models.decoder import Decoder
from harmonia.models.peft import SavedAdapter, read_saved_adapter, require_base
from harmonia.models.registry import ModelRegistry
from harmonia.train.checkpoint import AdapterToSave, ModelToSave, OptimizerState, save_folder


def save_checkpoint(
    registry: ModelRegistry, key: str, model: AdapterToSave | ModelToSave, state: OptimizerState | None = None
) -> Path:
    folder = registry.path_for(key)
    save_folder(folder, model, state)
    return folder


def load_adapter(registry: ModelRegistry, uri: str, decoder: Decoder, model: str, *, max_rank: int) -> SavedAdapter:
    folder = registry.resolve(uri)
    saved = read_saved_adapter(folder, max_rank=max_rank)
    require_base(folder, saved, decoder, model)
    return saved
