"""What a forward pass needs to know about its batch, whoever made it.

Shapes: T tokens, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from harmonia.kernels.attention import LayerCache, PagedLayout, paged_attention, write_cache
from harmonia.kernels.lora import LoraSegment
from harmonia.kernels.packed_attention import packed_attention


class AttentionContext(Protocol):
    """How the tokens of a batch see each other: through the paged cache when serving, packed when training."""

    def attend(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, scale: float, window: int) -> Tensor:
        """Attention of one layer: out_THD. `window` 0 sees everything before."""
        ...


@dataclass(frozen=True, slots=True)
class Forward:
    """One flat batch: positions of its tokens, their attention, and the adapters they use."""

    positions_T: Tensor
    """int64."""
    attention: AttentionContext
    adapters: tuple[LoraSegment, ...] = ()
    """Empty when no token of the batch uses an adapter; then adapters cost nothing."""


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """Attention over the cache of a serving step."""

    caches: tuple[LayerCache, ...]
    layout: PagedLayout

    def attend(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, scale: float, window: int) -> Tensor:
        """Write keys and values, then attend to everything cached."""
        cache = self.caches[layer]
        write_cache(k_TGD, v_TGD, cache, self.layout.slots_T)
        return paged_attention(q_THD, cache, self.layout, scale, window)


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """Attention of whole sequences that lie side by side, for training: nothing is cached."""

    lengths: tuple[int, ...]
    """Tokens of each sequence; they sum to those of the batch."""

    def attend(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, scale: float, window: int) -> Tensor:
        """Each sequence attends to itself."""
        return packed_attention(q_THD, k_TGD, v_TGD, self.lengths, scale, window)
