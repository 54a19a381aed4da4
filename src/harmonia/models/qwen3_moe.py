"""Qwen3-MoE: Qwen3's attention; feed-forward layers are mixtures of experts unless the configuration says not."""

from __future__ import annotations

from harmonia.layers.linear import Linear, WeightFormat
from harmonia.layers.mlp import GatedMlp
from harmonia.layers.moe import SparseMoe
from harmonia.models import blocks
from harmonia.models.config import ModelConfig, MoeConfig
from harmonia.models.decoder import DecoderLayer, Ropes


def build_layer(config: ModelConfig, layer: int, fmt: WeightFormat, ropes: Ropes) -> DecoderLayer:
    """Pre-norm attention with `config.qk_norm`, then experts or a plain gated feed-forward layer."""
    if config.moe is None or not config.is_moe_layer(layer):
        return blocks.pre_norm_layer(config, layer, fmt, ropes, blocks.mlp(config, fmt))
    return blocks.pre_norm_layer(config, layer, fmt, ropes, _experts(config, config.moe, fmt))


def _experts(config: ModelConfig, moe: MoeConfig, fmt: WeightFormat) -> SparseMoe:
    # Routing decides by small differences: the router stays unquantised.
    router = Linear.create(config.hidden_size, {"gate": moe.num_experts}, fmt.unrounded)
    experts = tuple(
        GatedMlp.create(config.hidden_size, moe.intermediate_size, config.activation, fmt)
        for _ in range(moe.num_experts)
    )
    return SparseMoe(router, experts, moe.num_experts_per_tok, moe.norm_topk_prob)
