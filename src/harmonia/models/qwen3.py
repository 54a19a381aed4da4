"""Qwen3: no biases, queries and keys normalised per head before they are rotated."""

from __future__ import annotations

from harmonia.layers.linear import WeightFormat
from harmonia.models import blocks
from harmonia.models.config import ModelConfig
from harmonia.models.decoder import DecoderLayer, Ropes


def build_layer(config: ModelConfig, layer: int, fmt: WeightFormat, ropes: Ropes) -> DecoderLayer:
    """Pre-norm attention with `config.qk_norm` and a gated feed-forward layer."""
    return blocks.pre_norm_layer(config, layer, fmt, ropes, blocks.mlp(config, fmt))
