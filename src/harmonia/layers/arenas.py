"""The memory behind an adapter bank: rank rows of every adapted linear layer, and the tables that kernels read.

Tables stay at their addresses until the arenas grow, so a captured graph serves adapters loaded after its capture.
Shapes: K input features, M output features of one part, P parts of a linear layer, A parts of all of them, R rank rows,
S slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harmonia.kernels.lora import LoraArena, LoraPart, LoraRows, LoraTable
from harmonia.layers.linear import Linear, WeightFormat

NO_ROWS = LoraRows(0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class BankTarget:
    """A named part of a linear layer that adapters may change."""

    path: str
    """Such as `model.layers.0.self_attn.q_proj`."""
    linear: Linear
    part: str


class Arenas:
    """Arenas of the same number of rows for all targets; empty at first."""

    def __init__(self, targets: Iterable[BankTarget], fmt: WeightFormat) -> None:
        self.parts: dict[str, LoraPart] = {}
        """By path; none while there are no slots."""
        self.generation = 0
        """Changes whenever something moved that a captured graph may read."""
        self._targets = tuple(targets)
        self._fmt = fmt
        self._grouped: list[tuple[LoraArena, list[LoraPart]]] = []
        with torch.inference_mode(mode=False):
            self._table = LoraTable(torch.zeros(0, 2, dtype=torch.int32, device=fmt.device), 0)
            self._scales_AR = torch.zeros(0, 0, device=fmt.device)

    def grow(self, num_slots: int, num_rows: int) -> None:
        """To so many slots and rows, no fewer than there are. What is in the rows stays, leaves are moved along."""
        if num_slots and not self.parts:
            self._create()
        with torch.inference_mode(mode=False), torch.no_grad():
            self._table.ranges_S2 = self._table.ranges_S2.new_zeros(num_slots, 2)
            self._table.num_rows = num_rows
            self._scales_AR = self._scales_AR.new_zeros(len(self.parts), num_rows)
            first = 0
            for arena, parts in self._grouped:
                _enlarge(arena, num_rows)
                arena.scales_PR = self._scales_AR[first : first + len(parts)]
                first += len(parts)
                for index, part in enumerate(parts):
                    part.rows_of_slot.extend([NO_ROWS] * (num_slots - len(part.rows_of_slot)))
                    part.a_RK, part.b_RN = arena.part(index)
                    for slot, leaves in part.leaves.items():
                        leaves.a_rK.data, leaves.b_rN.data = rows_of(part, slot)
        self.generation += 1

    def write_tables(self, ranges: Sequence[range | None]) -> None:
        """Tell the device which rows belong to which slot, in place, behind whatever it was told to run."""
        table = self._table
        table.ranges = [range(0) if rows is None else rows for rows in ranges]
        longest = max((len(rows) for rows in table.ranges), default=0)
        if longest > table.longest:  # captured graphs have room for shorter ranges
            table.longest = longest
            self.generation += 1
        bounds_S2 = np.array([(rows.start, rows.stop) for rows in table.ranges], np.int32).reshape(-1, 2)
        table.ranges_S2.copy_(torch.from_numpy(bounds_S2))
        scales_AR = np.zeros(self._scales_AR.shape, np.float32)
        index = 0
        for arena, parts in self._grouped:
            is_used = arena.is_used
            for part in parts:
                for rows in part.rows_of_slot:
                    scales_AR[index, rows.offset : rows.offset + rows.rank] = rows.scale
                is_used = is_used or any(rows.rank for rows in part.rows_of_slot)
                index += 1
            if is_used and not arena.is_used:  # captured graphs leave out layers that no adapter changes
                arena.is_used = True
                self.generation += 1
        self._scales_AR.copy_(torch.from_numpy(scales_AR))

    def _create(self) -> None:
        """Arenas without rows, one for each linear layer."""
        grouped: dict[int, list[BankTarget]] = {}
        for target in self._targets:
            grouped.setdefault(id(target.linear), []).append(target)
        for targets in grouped.values():
            targets.sort(key=lambda target: target.linear.part(target.part).start)
            arena = self._new_arena(targets)
            parts = [LoraPart(*arena.part(index), [], arena=arena) for index in range(len(targets))]
            for target, part in zip(targets, parts, strict=True):
                self.parts[target.path] = target.linear.lora[target.part] = part
            self._grouped.append((arena, parts))

    def _new_arena(self, targets: Sequence[BankTarget]) -> LoraArena:
        linear, fmt = targets[0].linear, self._fmt
        parts = [linear.part(target.part) for target in targets]
        with torch.inference_mode(mode=False):  # so that autograd takes its rows
            a_PRK = torch.zeros(len(parts), 0, linear.num_in, dtype=fmt.dtype, device=fmt.device)
            b, scales_PR = a_PRK.new_zeros(0), self._scales_AR.new_zeros(len(parts), 0)
        starts, sizes = tuple(part.start for part in parts), tuple(part.size for part in parts)
        return LoraArena(a_PRK, b, scales_PR, starts, sizes, self._table)


def rows_of(part: LoraPart, slot: int) -> tuple[Tensor, Tensor]:
    """The adapter's A and B in the arena."""
    rows = part.rows_of_slot[slot]
    used = slice(rows.offset, rows.offset + rows.rank)
    return part.a_RK[used], part.b_RN[used]


def _enlarge(arena: LoraArena, num_rows: int) -> None:
    num_parts, old_rows, num_in = arena.a_PRK.shape
    if num_rows == old_rows:
        return
    old = [arena.part(index) for index in range(num_parts)]
    arena.a_PRK = arena.a_PRK.new_zeros(num_parts, num_rows, num_in)
    arena.b = arena.b.new_zeros(num_rows * sum(arena.sizes))
    for index, (a_RK, b_RM) in enumerate(old):
        larger_a_RK, larger_b_RM = arena.part(index)
        larger_a_RK[:old_rows].copy_(a_RK)
        larger_b_RM[:old_rows].copy_(b_RM)
