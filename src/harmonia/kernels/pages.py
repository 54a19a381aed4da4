"""A paged key/value cache, and where the tokens of a batch stand in it.

Shapes: T tokens of a batch, S sequences, G key/value heads, D head size, N blocks, P tokens per block, B blocks of all
sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

NO_WINDOW = 0


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one layer; replaced when the cache grows."""

    k_NPGD: Tensor
    v_NPGD: Tensor


@dataclass(frozen=True, slots=True)
class PagedLayout:
    """Where the tokens of a batch stand in the cache. Sequences with a single token (decodes) come first.

    In a captured graph the host knows no lengths, and either every sequence is a decode or none is treated as one. A
    decode that only fills up its batch size has the slot -1 and no context: nothing is written for it, and its
    attention is zero. Other padding is tokens of no sequence, whose attention is anything, and empty sequences.
    """

    slots_T: Tensor
    """Block * P + offset at which each token's key and value are kept; int32 on a GPU, int64 on a CPU."""
    blocks_B: Tensor
    """int32: the blocks of each sequence in order, one sequence after another."""
    block_starts_S: Tensor
    """int32: where those of each sequence begin."""
    context_lens_S: Tensor
    """int32: tokens of each sequence in the cache after this step's were written."""
    query_starts_S1: Tensor
    """int32: the first token of each sequence in this batch; T at the end."""
    query_lens: tuple[int, ...]
    """Tokens of each sequence in this batch, on the host; empty in a graph."""
    context_lens: tuple[int, ...]
    """`context_lens_S` on the host; empty in a graph."""
    num_decodes: int
    """The first so many sequences have one token each."""
    invariant: bool = False
    """Whether a token's result must be the same bits in whichever batch and chunk it comes."""
    derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What kernels made of it, once for all layers."""
