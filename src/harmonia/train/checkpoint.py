"""Saving what was trained under a key of the registry, all of it or nothing, and loading it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
from torch import Tensor

from harmonia.layers.adapters import LoraMatrices
from harmonia.models.adaptive_info import AdaptiveInfo, write_info
from harmonia.models.atomic import replacing
from harmonia.models.decoder import Decoder
from harmonia.models.export import model_bytes, tokenizer_bytes, write_model
from harmonia.models.peft import write_adapter
from harmonia.models.source import ModelSource
from harmonia.train.optimizer_state import save_state, state_bytes

_SMALL_FILES = 1 << 20


class OptimizerState(NamedTuple):
    """What `save(inference_only=False)` keeps beside the weights."""

    tensors: Mapping[str, Tensor]
    """Such as fp32 master weights and Adam's two averages."""
    meta: Mapping[str, object]
    """Plain data, such as the step."""


@dataclass(frozen=True, slots=True)
class AdapterToSave:
    """An adapter as it stands. Its tensors are read while it is saved and must not change until then."""

    matrices: Mapping[str, LoraMatrices]
    """By module path, such as `model.layers.0.self_attn.q_proj`."""
    base_model: str
    """Path or registry URI of the base."""
    source: ModelSource
    """The base's files."""
    scalar_head: Tensor | None = None
    info: AdaptiveInfo | None = None

    @property
    def num_bytes(self) -> int:
        """About what it takes on the disk."""
        matrices = sum(lora.a_rK.nbytes + lora.b_Nr.nbytes for lora in self.matrices.values())
        return matrices + tokenizer_bytes(self.source) + _SMALL_FILES

    def write(self, folder: Path) -> None:
        """Into an empty folder."""
        write_adapter(folder, self.matrices, self.base_model, self.scalar_head, source=self.source, info=self.info)


@dataclass(frozen=True, slots=True)
class ModelToSave:
    """Full weights as they stand. They are read while they are saved and must not change until then."""

    decoder: Decoder
    source: ModelSource
    """The files that the decoder was loaded from."""
    scalar_head: Tensor | None = None
    info: AdaptiveInfo | None = None
    adapter: Mapping[str, LoraMatrices] = field(default_factory=dict)
    """Is added to the weights, by module path."""

    @property
    def num_bytes(self) -> int:
        """About what it takes on the disk."""
        return model_bytes(self.source, self.decoder)

    def write(self, folder: Path) -> None:
        """Into an empty folder."""
        write_model(folder, self.source, self.decoder, self.scalar_head, adapter=self.adapter)
        info = self.info or AdaptiveInfo(kind="model")
        write_info(folder, msgspec.structs.replace(info, kind="model", scalar_head=self.scalar_head is not None))


def save_folder(target: Path, model: AdapterToSave | ModelToSave, state: OptimizerState | None = None) -> int:
    """Save as a folder, in place of what may be there; its bytes.

    At any moment, and whatever interrupts it, the folder holds the old or the new model, whole.
    Errors: InvalidRequestError for a full disk, naming bytes needed and free.
    """
    num_bytes = model.num_bytes + (0 if state is None else state_bytes(state.tensors))
    with replacing(target, num_bytes=num_bytes) as folder:
        model.write(folder)
        if state is not None:
            save_state(folder, state.tensors, state.meta)
    return sum(file.stat().st_size for file in target.iterdir())
