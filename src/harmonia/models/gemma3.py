"""Gemma 3, text: norms before and after each branch, their weights stored less one; windowed layers between full ones,
each kind with its own position base; embeddings scaled by the root of the width.

Shapes: T tokens, E features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from harmonia.layers.attention import Attention
from harmonia.layers.forward import Forward
from harmonia.layers.linear import LinearPart, WeightFormat
from harmonia.layers.mlp import GatedMlp
from harmonia.layers.norm import RmsNorm
from harmonia.layers.parameter import Parameter
from harmonia.models import blocks
from harmonia.models.config import ModelConfig
from harmonia.models.decoder import Ropes

NORM_OFFSET = 1.0


@dataclass(frozen=True, slots=True)
class Gemma3Layer:
    """Each branch is normalised on its way in and on its way out."""

    input_norm: RmsNorm
    attention: Attention
    attention_out_norm: RmsNorm
    mlp_norm: RmsNorm
    mlp: GatedMlp
    mlp_out_norm: RmsNorm

    def __call__(self, x_TE: Tensor, residual_TE: Tensor | None, forward: Forward) -> tuple[Tensor, Tensor]:
        """(output not yet added, residual)."""
        x_TE, residual_TE = self.input_norm.add(x_TE, residual_TE)
        x_TE = self.attention_out_norm(self.attention(x_TE, forward))
        x_TE, residual_TE = self.mlp_norm.add(x_TE, residual_TE)
        return self.mlp_out_norm(self.mlp(x_TE, forward.adapters)), residual_TE

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        """By transformers' names."""
        yield from self.input_norm.parameters(f"{prefix}input_layernorm.")
        yield from self.attention.parameters(f"{prefix}self_attn.")
        yield from self.attention_out_norm.parameters(f"{prefix}post_attention_layernorm.")
        yield from self.mlp_norm.parameters(f"{prefix}pre_feedforward_layernorm.")
        yield from self.mlp.parameters(f"{prefix}mlp.")
        yield from self.mlp_out_norm.parameters(f"{prefix}post_feedforward_layernorm.")

    def linears(self, prefix: str) -> Iterator[LinearPart]:
        """Projections of attention and feed-forward layer."""
        yield from self.attention.linears(f"{prefix}self_attn.")
        yield from self.mlp.linears(f"{prefix}mlp.")


def build_layer(config: ModelConfig, layer: int, fmt: WeightFormat, ropes: Ropes) -> Gemma3Layer:
    """Unfilled layer; its window and position table follow from `config.windows`."""

    def norm() -> RmsNorm:
        return RmsNorm.create(config.hidden_size, config.norm_eps, fmt, offset=NORM_OFFSET)

    return Gemma3Layer(
        norm(),
        blocks.attention(config, layer, fmt, ropes, norm_offset=NORM_OFFSET),
        norm(),
        norm(),
        blocks.mlp(config, fmt),
        norm(),
    )
