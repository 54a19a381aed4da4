"""Low-rank additions of several adapters in one batch (Hu et al., LoRA, 2021), and their gradients.

Shapes: T tokens, K input features, N output features of all parts, M of one part, R rank rows of the arena, r of one
adapter, S rank rows of all parts of a segment, t tokens of a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from harmonia.kernels.matmul_grad import linear, outer_sum


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


@dataclass(frozen=True, slots=True)
class LoraLeaves:
    """One adapter's change of one matrix while it is trained: autograd leaves that are rows of the arena."""

    a_rK: Tensor
    b_rN: Tensor
    scale: float


@dataclass(slots=True)
class LoraPart:
    """Arena of one part of a linear layer, shared by all adapters."""

    a_RK: Tensor
    b_RN: Tensor
    rows_of_slot: list[LoraRows]
    leaves: dict[int, LoraLeaves] = field(default_factory=dict)
    """By slot, of adapters in training; the others are frozen."""


class PlacedLora(NamedTuple):
    """The arena of a part, and the output features that the part takes."""

    start: int
    size: int
    part: LoraPart


class LoraTerm(NamedTuple):
    """What one part adds to one segment: y[:, columns] += scale * (x A^T) B."""

    columns: slice
    a_rK: Tensor
    b_rM: Tensor
    scale: float
    leaves: LoraLeaves | None


class LoraTerms(NamedTuple):
    """Everything that is added to one segment."""

    tokens: slice
    terms: list[LoraTerm]


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


def lora_terms(placed: Sequence[PlacedLora], segments: Sequence[LoraSegment]) -> list[LoraTerms]:
    """What the backward pass needs to know of `add_lora`, as the arena's table stands now."""
    found = []
    for segment in segments:
        terms = []
        for start, size, part in placed:
            rows = part.rows_of_slot[segment.slot]
            if rows.rank:
                used = slice(rows.offset, rows.offset + rows.rank)
                leaves = part.leaves.get(segment.slot)
                terms.append(LoraTerm(slice(start, start + size), part.a_RK[used], part.b_RN[used], rows.scale, leaves))
        if terms and segment.stop > segment.start:
            found.append(LoraTerms(slice(segment.start, segment.stop), terms))
    return found


def lora_leaves(segments: Sequence[LoraTerms]) -> list[Tensor]:
    """A and B of every term in training, in the order in which `lora_grads` returns their gradients."""
    trained = (term.leaves for segment in segments for term in segment.terms if term.leaves is not None)
    return [leaf for leaves in trained for leaf in (leaves.a_rK, leaves.b_rN)]


def lora_grads(
    x_TK: Tensor | None, dy_TN: Tensor, dx_TK: Tensor | None, segments: Sequence[LoraTerms], *, fast: bool
) -> list[Tensor]:
    """Gradients of `lora_leaves(segments)` in fp32; adds to `dx_TK` in place what goes through every term.

    The parts of a segment share their products with x and dx, whatever their ranks. `x_TK` is needed for leaves only.
    """
    grads: list[Tensor] = []
    for tokens, terms in segments:
        is_trained = any(term.leaves is not None for term in terms)
        if dx_TK is None and not is_trained:
            continue
        dy_tN = dy_TN[tokens]
        down = [linear(dy_tN[:, term.columns], term.b_rM, fast=fast).mul_(term.scale) for term in terms]
        dlow_tS = torch.cat(down, dim=1) if len(down) > 1 else down[0]
        a_SK = torch.cat([term.a_rK for term in terms]) if len(terms) > 1 else terms[0].a_rK
        if dx_TK is not None:
            dx_TK[tokens].addmm_(dlow_tS, a_SK)
        if is_trained:
            assert x_TK is not None
            grads += _leaf_grads(x_TK[tokens], dy_tN, dlow_tS, a_SK, terms, fast=fast)
    return grads


def _leaf_grads(
    x_tK: Tensor, dy_tN: Tensor, dlow_tS: Tensor, a_SK: Tensor, terms: Sequence[LoraTerm], *, fast: bool
) -> list[Tensor]:
    low_tS = linear(x_tK, a_SK, fast=fast)
    da_SK = outer_sum(dlow_tS, x_tK, fast=fast)
    grads, start = [], 0
    for term in terms:
        rows = slice(start, start + term.a_rK.shape[0])
        start = rows.stop
        if term.leaves is not None:
            db_rM = outer_sum(low_tS[:, rows], dy_tN[:, term.columns], fast=fast).mul_(term.scale)
            grads += [da_SK[rows], db_rM]
    return grads
