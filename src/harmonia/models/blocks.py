"""Pieces that several families build the same way from their configuration.

Shapes: T tokens, E features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from harmonia.layers.attention import Attention, AttentionShape
from harmonia.layers.forward import Forward
from harmonia.layers.linear import Linear, LinearPart, WeightFormat
from harmonia.layers.mlp import GatedMlp
from harmonia.layers.moe import SparseMoe
from harmonia.layers.norm import RmsNorm
from harmonia.layers.parameter import Parameter
from harmonia.models.config import ModelConfig
from harmonia.models.decoder import Ropes


@dataclass(frozen=True, slots=True)
class PreNormLayer:
    """Norm before attention, norm before the feed-forward layer: Llama's order, which most families kept."""

    input_norm: RmsNorm
    attention: Attention
    mlp_norm: RmsNorm
    mlp: GatedMlp | SparseMoe

    def __call__(self, x_TE: Tensor, residual_TE: Tensor | None, forward: Forward) -> tuple[Tensor, Tensor]:
        """(output not yet added, residual)."""
        x_TE, residual_TE = self.input_norm.add(x_TE, residual_TE)
        x_TE, residual_TE = self.mlp_norm.add(self.attention(x_TE, forward), residual_TE)
        return self.mlp(x_TE, forward.adapters), residual_TE

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        """By transformers' names."""
        yield from self.input_norm.parameters(f"{prefix}input_layernorm.")
        yield from self.attention.parameters(f"{prefix}self_attn.")
        yield from self.mlp_norm.parameters(f"{prefix}post_attention_layernorm.")
        yield from self.mlp.parameters(f"{prefix}mlp.")

    def linears(self, prefix: str) -> Iterator[LinearPart]:
        """Projections of attention and feed-forward layer."""
        yield from self.attention.linears(f"{prefix}self_attn.")
        yield from self.mlp.linears(f"{prefix}mlp.")


def attention(
    config: ModelConfig, layer: int, fmt: WeightFormat, ropes: Ropes, *, norm_offset: float = 0.0
) -> Attention:
    """Unfilled attention of one layer."""
    window = config.windows[layer]
    query_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = {"q_proj": query_size, "k_proj": kv_size, "v_proj": kv_size}
    q_norm = k_norm = None
    if config.qk_norm:
        q_norm = RmsNorm.create(config.head_dim, config.norm_eps, fmt, offset=norm_offset)
        k_norm = RmsNorm.create(config.head_dim, config.norm_eps, fmt, offset=norm_offset)
    return Attention(
        AttentionShape(layer, config.num_heads, config.num_kv_heads, config.head_dim, config.attention_scale, window),
        Linear.create(config.hidden_size, sizes, fmt, bias=config.qkv_bias),
        Linear.create(query_size, {"o_proj": config.hidden_size}, fmt, bias=config.output_bias),
        ropes.local if window else ropes.full,
        q_norm,
        k_norm,
    )


def mlp(config: ModelConfig, fmt: WeightFormat) -> GatedMlp:
    """Unfilled plain feed-forward layer."""
    return GatedMlp.create(config.hidden_size, config.intermediate_size, config.activation, fmt, bias=config.mlp_bias)


def pre_norm_layer(
    config: ModelConfig, layer: int, fmt: WeightFormat, ropes: Ropes, feed_forward: GatedMlp | SparseMoe
) -> PreNormLayer:
    """Unfilled layer in Llama's order around this feed-forward layer."""
    return PreNormLayer(
        RmsNorm.create(config.hidden_size, config.norm_eps, fmt),
        attention(config, layer, fmt, ropes),
        RmsNorm.create(config.hidden_size, config.norm_eps, fmt),
        feed_forward,
    )
