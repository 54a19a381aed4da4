"""Tensors of a GGUF file under their Hugging Face names, dequantised while they are read.

Shapes: R rows, C columns, H heads, D head size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from harmonia.errors import UnsupportedModelError
from harmonia.models.config import ModelConfig
from harmonia.models.gguf import GgufFile, GgufTensor
from harmonia.models.gguf_config import ROPE_FACTORS

_Q = GGMLQuantizationType
SUPPORTED_TYPES = (
    *(_Q.F32, _Q.F16, _Q.BF16),
    *(_Q.Q4_0, _Q.Q4_1, _Q.Q5_0, _Q.Q5_1, _Q.Q8_0),
    *(_Q.Q4_K, _Q.Q5_K, _Q.Q6_K),
)

_GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERT_NAMES = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_LAYER_PATTERN = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")


class _View(NamedTuple):
    """Some rows of a stored tensor, as a tensor of their own."""

    tensor: GgufTensor
    shape: tuple[int, ...]
    first_row: int
    heads: int
    """Rotary heads whose rows the converter interleaved; 0: rows are in order."""


class GgufTensors:
    """Reader of one file. Errors: UnsupportedModelError naming tensors of types that cannot be dequantised."""

    def __init__(self, file: GgufFile, config: ModelConfig, chunk_items: int) -> None:
        self._file = file
        self._config = config
        self._chunk_items = chunk_items
        # Converters to GGUF store Gemma's norm weights with the one added that transformers adds when running.
        self._norm_offset = -1.0 if config.family == "gemma3" else 0.0
        self._views: dict[str, _View] = {}
        for tensor in file.tensors.values():
            _check_type(file, tensor)
            if tensor.name != ROPE_FACTORS:
                self._views.update(self._named(tensor))
        self._bytes = np.memmap(file.path, dtype=np.uint8, mode="r")

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor, experts apart."""
        return {name: view.shape for name, view in self._views.items()}

    def read(self, name: str) -> Iterator[Tensor]:
        """fp32 ranges of rows, whole heads at a time where heads must be put back in order."""
        view = self._views[name]
        if len(view.shape) == 1:
            values = self._dequantize(view.tensor, 0, 1).reshape(view.shape)
            if view.heads:
                values = _halves_apart(values[:, None], view.shape[0] // view.heads)[:, 0]
            yield values + self._norm_offset if name.endswith("norm.weight") else values
            return
        head_rows = view.shape[0] // view.heads if view.heads else 1
        step = max(1, self._chunk_items // view.shape[1] // head_rows) * head_rows
        for start in range(0, view.shape[0], step):
            count = min(step, view.shape[0] - start)
            rows_RC = self._dequantize(view.tensor, view.first_row + start, count)
            yield _halves_apart(rows_RC, head_rows) if view.heads else rows_RC

    def _named(self, tensor: GgufTensor) -> dict[str, _View]:
        stem, _, suffix = tensor.name.rpartition(".")
        if stem in _GLOBAL_NAMES:
            return {f"{_GLOBAL_NAMES[stem]}.{suffix}": _View(tensor, tensor.shape, 0, 0)}
        match = _LAYER_PATTERN.fullmatch(tensor.name)
        if match is None:
            return {tensor.name: _View(tensor, tensor.shape, 0, 0)}
        layer, kind, suffix = match.groups()
        prefix = f"model.layers.{layer}."
        if kind in _EXPERT_NAMES and len(tensor.shape) == 3:
            experts, rows, columns = tensor.shape
            return {
                f"{prefix}mlp.experts.{index}.{_EXPERT_NAMES[kind]}.weight": _View(
                    tensor, (rows, columns), index * rows, 0
                )
                for index in range(experts)
            }
        names = _LAYER_NAMES | (_GEMMA_NAMES if self._config.family == "gemma3" else {})
        name = f"{prefix}{names[kind]}.{suffix}" if kind in names else tensor.name
        return {name: _View(tensor, tensor.shape, 0, self._interleaved_heads(kind))}

    def _interleaved_heads(self, kind: str) -> int:
        if self._config.family != "llama":
            return 0
        return {"attn_q": self._config.num_heads, "attn_k": self._config.num_kv_heads}.get(kind, 0)

    def _dequantize(self, tensor: GgufTensor, first_row: int, num_rows: int) -> Tensor:
        start = tensor.start + first_row * tensor.row_bytes
        raw = self._bytes[start : start + num_rows * tensor.row_bytes].reshape(num_rows, tensor.row_bytes)
        return torch.from_numpy(dequantize(np.array(raw), tensor.kind))


def _check_type(file: GgufFile, tensor: GgufTensor) -> None:
    if tensor.kind not in SUPPORTED_TYPES:
        supported = ", ".join(kind.name for kind in SUPPORTED_TYPES)
        message = f"{file.path}: tensor {tensor.name!r} is of type {tensor.kind.name}. Supported: {supported}."
        raise UnsupportedModelError(message, file=str(file.path), tensor=tensor.name, type=tensor.kind.name)


def _halves_apart(rows_RC: Tensor, head_rows: int) -> Tensor:
    """Undo llama.cpp's order of a rotary head's rows: it pairs neighbours, transformers pairs the halves."""
    pairs = rows_RC.unflatten(0, (-1, head_rows // 2, 2))
    return pairs.transpose(1, 2).reshape(rows_RC.shape)
