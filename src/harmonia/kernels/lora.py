"""Low-rank additions of several adapters in one batch (Hu et al., LoRA, 2021), and their gradients.

On a GPU the kernels of `lora_triton` and `lora_grad_triton` take all parts and adapters of a linear layer at once.
Shapes: T tokens, K input features, N output features of all parts, M of one part, P parts, R rank rows of the arena,
r of one adapter, S rank rows of all parts of a segment (or slots of a bank), t tokens of a segment, X tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from harmonia.kernels import gpu, native
from harmonia.kernels.lora_layout import (
    LoraArena,
    LoraLeaves,
    LoraPart,
    LoraRoutes,
    LoraRows,
    LoraRuns,
    LoraSegment,
    LoraTable,
)
from harmonia.kernels.lora_native import add_low_rank_native
from harmonia.kernels.matmul_grad import linear, outer_sum
from harmonia.kernels.native import Impl

if TYPE_CHECKING:
    from harmonia.kernels.lora_grad_triton import GradItems, LoraGradients

_FEW_TOKENS = 256

__all__ = [
    "LoraArena",
    "LoraBatch",
    "LoraLeaves",
    "LoraPart",
    "LoraRoutes",
    "LoraRows",
    "LoraRuns",
    "LoraSegment",
    "LoraTable",
    "LoraTerm",
    "LoraTerms",
    "PlacedLora",
    "adapter_grads",
    "add_adapters",
    "add_lora",
    "lora_grads",
    "lora_leaves",
    "lora_terms",
]


@dataclass(slots=True)
class LoraBatch:
    """Which adapter each token of a batch uses; batches without any have none of these."""

    segments: tuple[LoraSegment, ...]
    """Empty inside a captured graph, where only the device knows."""
    slots_T: Tensor | None = None
    """int32 on a GPU: slot of each token, or -1; made of the segments if None."""
    _routes: LoraRoutes | None = None
    _runs: LoraRuns | None = None
    grad_items: GradItems | None = None
    """How the backward pass is cut up; made by the first layer that goes backward."""

    @staticmethod
    def of(segments: Sequence[LoraSegment], slots_T: Tensor | None = None) -> LoraBatch | None:
        """None without segments."""
        return LoraBatch(tuple(segments), slots_T) if segments else None

    def routes(self, x_TK: Tensor, table: LoraTable) -> LoraRoutes:
        """Found out when the first linear layer asks; later ones, and backward, use the same."""
        if self._routes is None:
            from harmonia.kernels import lora_triton  # imported where it runs: a CPU install has no Triton

            slots_T = self._device_slots(x_TK)
            tiles_X4 = lora_triton.plan_tiles(slots_T, table)
            max_tiles = self._max_tiles(len(x_TK), table)
            self._routes = LoraRoutes(slots_T, tiles_X4, max_tiles, table.width, table.columns)
        return self._routes

    def runs(self, x_TK: Tensor, table: LoraTable) -> LoraRuns:
        """What few tokens need instead."""
        if self._runs is None:
            from harmonia.kernels import lora_decode_triton

            self._runs = lora_decode_triton.plan_runs(self._device_slots(x_TK), table)
        return self._runs

    def _max_tiles(self, num_tokens: int, table: LoraTable) -> int:
        width = table.width
        if self.segments:
            return sum(-(-len(table.ranges[slot]) // width) for slot in {segment.slot for segment in self.segments})
        return min(len(table.ranges) + table.num_rows // width, num_tokens * (table.columns // width))

    def _device_slots(self, x_TK: Tensor) -> Tensor:
        if self.slots_T is None:
            slots_T = torch.full((len(x_TK),), -1, dtype=torch.int32)
            for segment in self.segments:
                slots_T[segment.start : segment.stop] = segment.slot
            self.slots_T = slots_T.to(x_TK.device, non_blocking=True)
        return self.slots_T


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
    slot: int


def add_adapters(
    y_TN: Tensor,
    x_TK: Tensor,
    placed: Sequence[PlacedLora],
    batch: LoraBatch,
    impl: Impl = "auto",
    *,
    invariant: bool = False,
) -> None:
    """Add what the adapters of a batch change to all parts of y, in place.

    `invariant`: what is added to a token's features is the same bits in every batch; without, it differs by rounding.
    """
    arena = placed[0].part.arena if placed else None
    if arena is None or not _takes_triton(x_TK, impl):
        for start, size, part in placed:
            add_lora(y_TN[:, start : start + size], x_TK, part.a_RK, part.b_RN, part.rows_of_slot, batch.segments)
    elif len(x_TK) and arena.is_used:
        from harmonia.kernels import lora_decode_triton, lora_triton

        if len(x_TK) <= _FEW_TOKENS and not invariant:
            lora_decode_triton.add_low_rank(y_TN, x_TK, arena, batch.runs(x_TK, arena.table))
        else:
            lora_triton.add_low_rank(y_TN, x_TK, arena, batch.routes(x_TK, arena.table), invariant=invariant)


def _takes_triton(x_TK: Tensor, impl: Impl) -> bool:
    return impl == "triton" or (impl == "auto" and gpu.usable(x_TK))


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
        tokens, used = slice(segment.start, segment.stop), slice(rows.offset, rows.offset + rows.rank)
        if native.usable(y_TN, x_TK):
            add_low_rank_native(y_TN[tokens], x_TK[tokens], a_RK[used], b_RN[used], rows.scale)
        else:
            y_TN[tokens].addmm_(x_TK[tokens] @ a_RK[used].T, b_RN[used], alpha=rows.scale)


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
            found.append(LoraTerms(slice(segment.start, segment.stop), terms, segment.slot))
    return found


def lora_leaves(segments: Sequence[LoraTerms]) -> list[Tensor]:
    """A and B of every term in training, in the order in which `lora_grads` returns their gradients."""
    trained = (term.leaves for segment in segments for term in segment.terms if term.leaves is not None)
    return [leaf for leaves in trained for leaf in (leaves.a_rK, leaves.b_rN)]


def adapter_grads(
    x_TK: Tensor | None,
    dy_TN: Tensor,
    dx_TK: Tensor | None,
    placed: Sequence[PlacedLora],
    batch: LoraBatch,
    terms: Sequence[LoraTerms],
    impl: Impl = "auto",
    *,
    fast: bool,
) -> list[Tensor | None]:
    """Gradients of `lora_leaves(terms)` in fp32; adds to `dx_TK` in place what goes through every adapter.

    `x_TK` is needed for leaves only. A leaf that is there twice gets all of its gradient in the first place.
    """
    arena = placed[0].part.arena if placed else None
    if not terms or arena is None or not _takes_triton(dy_TN, impl):
        return [*lora_grads(x_TK, dy_TN, dx_TK, terms, fast=fast)]
    is_trained = any(term.leaves is not None for segment in terms for term in segment.terms)
    if dx_TK is None and not is_trained:
        return []
    from harmonia.kernels import lora_grad_triton

    routes = batch.routes(dy_TN, arena.table)
    if batch.grad_items is None:
        batch.grad_items = lora_grad_triton.grad_items(batch.segments, arena.table, routes)
    found = lora_grad_triton.lora_gradients(x_TK if is_trained else None, dy_TN, dx_TK, arena, routes, batch.grad_items)
    return [] if found is None else _split_gradients(found, batch.grad_items, arena, terms)


def _split_gradients(
    found: LoraGradients, items: GradItems, arena: LoraArena, segments: Sequence[LoraTerms]
) -> list[Tensor | None]:
    grads: list[Tensor | None] = []
    seen: set[int] = set()
    for segment in segments:
        tiles = slice(*items.tiles[segment.slot])
        for term in segment.terms:
            if term.leaves is None:
                continue
            if segment.slot in seen:
                grads += [None, None]
                continue
            part, rank = arena.starts.index(term.columns.start), len(term.a_rK)
            before = sum(arena.sizes[:part])
            grads.append(found.a_XPWK[tiles, part].flatten(0, 1)[:rank])
            grads.append(found.b_XWN[tiles].flatten(0, 1)[:rank, before : before + arena.sizes[part]])
        seen.add(segment.slot)
    return grads


def lora_grads(
    x_TK: Tensor | None, dy_TN: Tensor, dx_TK: Tensor | None, segments: Sequence[LoraTerms], *, fast: bool
) -> list[Tensor]:
    """Gradients of `lora_leaves(segments)` in fp32; adds to `dx_TK` in place what goes through every term.

    The parts of a segment share their products with x and dx, whatever their ranks. `x_TK` is needed for leaves only.
    """
    grads: list[Tensor] = []
    for tokens, terms, _ in segments:
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
