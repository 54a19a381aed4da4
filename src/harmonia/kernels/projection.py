"""What the heads of a fused projection of queries, keys and values are.

Shapes: D head size, C positions of the table.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Heads(NamedTuple):
    """How a projection becomes heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    cos_sin_CD: Tensor
    """fp32: cos in the first half of a row, sin in the second."""
    q_norm_D: Tensor | None = None
    """Weight of the norm of each query head; None: no norm."""
    k_norm_D: Tensor | None = None
    eps: float = 0.0
