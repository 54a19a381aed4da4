"""Multi-head attention with shared key/value heads.

Shapes: T tokens, E features, F features of the fused projection, H query heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from harmonia.kernels.projection import Heads
from harmonia.layers.forward import Forward
from harmonia.layers.linear import Linear, LinearPart
from harmonia.layers.norm import RmsNorm
from harmonia.layers.parameter import Parameter
from harmonia.layers.rope import Rope


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The numbers of one attention layer."""

    layer: int
    """Index in the decoder, which is also that of its cache."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """Multiplies query-key products."""
    window: int
    """Tokens that a token sees, itself included; 0 sees all."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Project, rotate, attend, project back."""

    shape: AttentionShape
    qkv: Linear
    out: Linear
    rope: Rope
    q_norm: RmsNorm | None
    k_norm: RmsNorm | None

    def __call__(self, x_TE: Tensor, forward: Forward) -> Tensor:
        """Attention of normalised inputs: y_TE."""
        shape = self.shape
        qkv_TF = self.qkv(x_TE, forward.adapters)
        mixed_THD = forward.attention.attend(
            shape.layer, qkv_TF, self._heads(), forward.positions_T, scale=shape.scale, window=shape.window
        )
        return self.out(mixed_THD.flatten(1), forward.adapters)

    def _heads(self) -> Heads:
        shape, table_CD = self.shape, self.rope.cos_sin_CD
        if self.q_norm is None or self.k_norm is None:
            return Heads(shape.num_heads, shape.num_kv_heads, shape.head_dim, table_CD)
        norms = self.q_norm.weight_E, self.k_norm.weight_E
        return Heads(shape.num_heads, shape.num_kv_heads, shape.head_dim, table_CD, *norms, self.q_norm.eps)

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        """Projections and head norms."""
        yield from self.qkv.parameters(prefix)
        yield from self.out.parameters(prefix)
        if self.q_norm is not None and self.k_norm is not None:
            yield from self.q_norm.parameters(f"{prefix}q_norm.")
            yield from self.k_norm.parameters(f"{prefix}k_norm.")

    def linears(self, prefix: str) -> Iterator[LinearPart]:
        """q, k, v and o projections."""
        yield from self.qkv.linears(prefix)
        yield from self.out.linears(prefix)
