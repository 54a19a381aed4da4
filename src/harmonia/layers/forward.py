"""What a forward pass needs to know about its batch, whoever made it.

Shapes: T tokens, H query heads, D head size, F features of the fused projection of queries, keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from harmonia.kernels.attention import paged_attention
from harmonia.kernels.heads import heads_into_cache, rotated_heads
from harmonia.kernels.lora import LoraBatch
from harmonia.kernels.packed_attention import packed_attention
from harmonia.kernels.pages import LayerCache, PagedLayout
from harmonia.kernels.projection import Heads


class AttentionContext(Protocol):
    """How the tokens of a batch see each other: through the paged cache when serving, packed when training."""

    def attend(
        self, layer: int, qkv_TF: Tensor, heads: Heads, positions_T: Tensor, *, scale: float, window: int
    ) -> Tensor:
        """Attention of one layer to its projection: out_THD. `window` 0 sees everything before."""
        ...


@dataclass(frozen=True, slots=True)
class Forward:
    """One flat batch: positions of its tokens, their attention, and the adapters they use."""

    positions_T: Tensor
    """int64."""
    attention: AttentionContext
    adapters: LoraBatch | None = None
    """None when no token of the batch uses an adapter; then adapters cost nothing."""


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """Attention over the cache of a serving step."""

    caches: tuple[LayerCache, ...]
    layout: PagedLayout

    def attend(
        self, layer: int, qkv_TF: Tensor, heads: Heads, positions_T: Tensor, *, scale: float, window: int
    ) -> Tensor:
        """Write keys and values, then attend to everything cached."""
        cache = self.caches[layer]
        q_THD = heads_into_cache(qkv_TF, heads, positions_T, cache, self.layout.slots_T)
        return paged_attention(q_THD, cache, self.layout, scale, window)


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """Attention of whole sequences that lie side by side, for training: nothing is cached."""

    lengths: tuple[int, ...]
    """Tokens of each sequence; they sum to those of the batch."""
    invariant: bool = False
    """Sum in the order in which serving sums, so that both see the same numbers."""

    def attend(
        self, layer: int, qkv_TF: Tensor, heads: Heads, positions_T: Tensor, *, scale: float, window: int
    ) -> Tensor:
        """Each sequence attends to itself."""
        q_THD, k_TGD, v_TGD = rotated_heads(qkv_TF, heads, positions_T)
        return packed_attention(q_THD, k_TGD, v_TGD, self.lengths, scale, window, invariant=self.invariant)
