"""Qwen2 and Qwen2.5: Llama's plan with biases on queries, keys and values; windows, if any, in the upper layers."""

from __future__ import annotations

from harmonia.layers.linear import WeightFormat
from harmonia.models import blocks
from harmonia.models.config import ModelConfig
from harmonia.models.decoder import DecoderLayer, Ropes


def build_layer(config: ModelConfig, layer: int, fmt: WeightFormat, ropes: Ropes) -> DecoderLayer:
    """Pre-norm attention with `config.qkv_bias` and a gated feed-forward layer."""
    return blocks.pre_norm_layer(config, layer, fmt, ropes, blocks.mlp(config, fmt))
