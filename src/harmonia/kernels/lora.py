"""Low-rank additions of several adapters in one batch (Hu et al., LoRA, 2021).

Shapes: T tokens, K input features, N output features of one part, R rank rows of the arena.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraSegment:
    """Neighbouring tokens of a batch that use the same adapter."""

    start: int
    stop: int
    slot: int
    """Row of the adapter in the bank's table."""


@dataclass(frozen=True, slots=True)
class LoraRows:
    """Where one adapter's rows stand in the arena of one matrix, and its scale; rank 0: not a target."""

    offset: int
    rank: int
    scale: float


def add_lora(
    y_TN: Tensor,
    x_TK: Tensor,
    a_RK: Tensor,
    b_RN: Tensor,
    rows_of_slot: Sequence[LoraRows],
    segments: Sequence[LoraSegment],
) -> None:
    """y[segment] += scale * (x[segment] A^T) B, in place, for every segment whose adapter has rows here."""
    for segment in segments:
        rows = rows_of_slot[segment.slot]
        if rows.rank == 0:
            continue
        stop = rows.offset + rows.rank
        low_TR = x_TK[segment.start : segment.stop] @ a_RK[rows.offset : stop].T
        y_TN[segment.start : segment.stop].addmm_(low_TR, b_RN[rows.offset : stop], alpha=rows.scale)
