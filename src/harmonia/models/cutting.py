"""Cutting a model down to some of its layers: renaming in headers, so that no other tensor is ever read. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import msgspec

from harmonia.errors import InvalidRequestError
from harmonia.models.checkpoint import SafetensorsFolder
from harmonia.models.config import ModelConfig
from harmonia.models.gguf import GgufFile

EntryT = TypeVar("EntryT")

_LAYER = re.compile(r"(model\.layers\.|blk\.)(\d+)(\..+)")
"""Of a tensor's name, in safetensors and in GGUF files."""


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Raise InvalidRequestError unless a model of so many layers can be cut down to these."""
    last = num_layers - 1
    if not layers:
        problem = "is empty; name at least one layer"
    elif not 0 <= min(layers) <= max(layers) <= last:
        problem = f"names layer {min(layers) if min(layers) < 0 else max(layers)}; this model's are 0 to {last}"
    elif any(second <= first for first, second in pairwise(layers)):
        problem = "must rise; name each layer once, in the order in which the model has them"
    else:
        return
    raise InvalidRequestError(f"keep_layers {tuple(layers)} {problem}", field="keep_layers")


def cut_config(config: ModelConfig, layers: Sequence[int]) -> ModelConfig:
    """The configuration of these layers alone."""
    moe = config.moe
    if moe is not None:
        mixtures = tuple(place for place, layer in enumerate(layers) if config.is_moe_layer(layer))
        moe = msgspec.structs.replace(moe, layers=mixtures)
    windows = tuple(config.windows[layer] for layer in layers)
    return msgspec.structs.replace(config, num_layers=len(layers), windows=windows, moe=moe)


def cut_files(files: SafetensorsFolder | GgufFile, layers: Sequence[int]) -> SafetensorsFolder | GgufFile:
    """The tensors of these layers, named by their new places, and those that belong to no layer."""
    if isinstance(files, SafetensorsFolder):
        return replace(files, entries=_renamed(files.entries, layers))
    tensors = _renamed(files.tensors, layers)
    return replace(files, tensors={name: replace(tensor, name=name) for name, tensor in tensors.items()})


def _renamed(entries: Mapping[str, EntryT], layers: Sequence[int]) -> dict[str, EntryT]:
    places = {layer: place for place, layer in enumerate(layers)}
    kept: dict[str, EntryT] = {}
    for name, entry in entries.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            kept[name] = entry
        elif int(match[2]) in places:
            kept[f"{match[1]}{places[int(match[2])]}{match[3]}"] = entry
    return kept
