"""Llama 2 and 3, and what was built to their plan: SmolLM2, Mistral (with a sliding window)."""

from __future__ import annotations

from harmonia.layers.linear import WeightFormat
from harmonia.models import blocks
from harmonia.models.config import ModelConfig
from harmonia.models.decoder import DecoderLayer, Ropes


def build_layer(config: ModelConfig, layer: int, fmt: WeightFormat, ropes: Ropes) -> DecoderLayer:
    """Pre-norm attention and a gated feed-forward layer."""
    return blocks.pre_norm_layer(config, layer, fmt, ropes, blocks.mlp(config, fmt))
