"""Bytes that a model takes, from its configuration alone, for the plan that is made before anything is loaded.

Items per token are counted with E features, N outputs of the fused projection, R rotated features, F inner features.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from harmonia.layers.linear import WeightFormat
from harmonia.models.config import ModelConfig
from harmonia.models.families import build_decoder

_FP32_BYTES = 4
_SAMPLING_COPIES = 7
"""fp32 copies of the logits alive at once when rows are sampled with every filter; see kernels/sample.py."""


def weight_bytes(config: ModelConfig, fmt: WeightFormat) -> dict[str, int]:
    """By kind (embedding, layers, norm, head, rope): what `load_decoder` allocates."""
    sizes: dict[str, int] = {}
    for kind, storage in build_decoder(config, replace(fmt, device=torch.device("meta"))).storages():
        sizes[kind] = sizes.get(kind, 0) + storage.num_bytes
    return sizes


def kv_bytes_per_token(config: ModelConfig, fmt: WeightFormat) -> int:
    """Keys and values of one token in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * fmt.dtype.itemsize


def lora_bytes_per_rank(config: ModelConfig, fmt: WeightFormat) -> int:
    """One rank row of every projection that may carry adapters."""
    decoder = build_decoder(config, replace(fmt, device=torch.device("meta")))
    targets = ((target.linear, target.linear.part(target.part)) for target in decoder.linears())
    return sum(linear.num_in + part.size for linear, part in targets) * fmt.dtype.itemsize


def activation_bytes(config: ModelConfig, fmt: WeightFormat, num_tokens: int) -> int:
    """Most that one forward pass over so many tokens holds at a time, without the scratch of attention kernels."""
    in_attention = _attention_items(config, fmt)
    in_mlp = 3 * config.hidden_size + 4 * config.intermediate_size
    peak = max(in_attention, in_mlp, _moe_items(config, fmt), _norm_items(config, fmt))
    return num_tokens * peak * fmt.dtype.itemsize


def logits_bytes(config: ModelConfig, num_rows: int) -> int:
    """Logits of so many rows and what sampling them takes, in fp32."""
    return num_rows * config.vocab_size * _FP32_BYTES * _SAMPLING_COPIES


def _attention_items(config: ModelConfig, fmt: WeightFormat) -> int:
    """Residual, normalised input, fused projection; rotation in fp32 with its halves; mixed heads, output."""
    rotated = (config.num_heads + config.num_kv_heads) * config.head_dim
    fused = rotated + config.num_kv_heads * config.head_dim
    fp32 = _FP32_BYTES // fmt.dtype.itemsize
    return 3 * config.hidden_size + fused + rotated + 2 * rotated * fp32 + config.num_heads * config.head_dim


def _norm_items(config: ModelConfig, fmt: WeightFormat) -> int:
    """Input, sum, output, and the fp32 steps between."""
    return config.hidden_size * (3 + 2 * _FP32_BYTES // fmt.dtype.itemsize)


def _moe_items(config: ModelConfig, fmt: WeightFormat) -> int:
    """Residual, input, output; a row per chosen expert; the worst case of one expert taking every token; routing."""
    if config.moe is None:
        return 0
    chosen = config.moe.num_experts_per_tok
    routing = (config.moe.num_experts * 2 + chosen * 12) * _FP32_BYTES // fmt.dtype.itemsize
    expert = 4 * config.moe.intermediate_size + 2 * config.hidden_size
    return (3 + chosen) * config.hidden_size + expert + routing
