"""The adapter bank: an arena of rank rows that all adapters of a backbone share, in training and in serving.

Every adapted matrix has an arena of the same number of rows. An adapter takes one contiguous range of rows, as many as
its largest rank, in all of them; a matrix that it does not target, or targets with a lower rank, uses fewer.
Shapes: K input features, N output features of one part, R rank rows of the arena, r of one adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harmonia.errors import AdapterLimitError, InvalidRequestError
from harmonia.kernels.lora import LoraLeaves, LoraPart, LoraRows
from harmonia.layers.arenas import NO_ROWS, Arenas, BankTarget, rows_of
from harmonia.layers.linear import WeightFormat

__all__ = ["AdapterBank", "BankTarget", "LoraMatrices"]


@dataclass(frozen=True, slots=True)
class LoraMatrices:
    """One adapter's change of one target: W + scale * B A."""

    a_rK: Tensor
    b_Nr: Tensor
    scale: float


class AdapterBank:
    """Slots 0 to `max_adapters - 1`, each a range of the arena's rows."""

    def __init__(self, targets: Iterable[BankTarget], *, max_adapters: int, num_rows: int, fmt: WeightFormat) -> None:
        self.max_adapters = 0
        self.num_rows = 0
        self._ranges: list[range | None] = []
        self._arenas = Arenas(targets, fmt)
        self._parts = self._arenas.parts
        self.grow(max_adapters, num_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arena."""
        return sum(part.a_RK.nbytes + part.b_RN.nbytes for part in self._parts.values())

    @property
    def generation(self) -> int:
        """Another number once something moved that a captured graph reads; loading adapters seldom does that."""
        return self._arenas.generation

    def grow(self, num_adapters: int, num_rows: int) -> None:
        """Make room for so many adapters and rank rows; never fewer than before.

        Adapters keep their slots and rows. Leaves stay the same tensors, with their gradients, on the memory of the new
        arena.
        """
        num_adapters, num_rows = max(num_adapters, self.max_adapters), max(num_rows, self.num_rows)
        if (num_adapters, num_rows) == (self.max_adapters, self.num_rows):
            return
        self._arenas.grow(num_adapters, num_rows)
        self._ranges.extend([None] * (num_adapters - self.max_adapters))
        self.max_adapters, self.num_rows = num_adapters, num_rows
        self._arenas.write_tables(self._ranges)

    def reserve(self, num_adapters: int, rank: int) -> None:
        """Make sure that so many more adapters of this rank find room; grows by what is missing."""
        free_slots = self._ranges.count(None)
        taken = sorted((rows for rows in self._ranges if rows is not None), key=lambda rows: rows.start)
        starts, stops = [0, *(rows.stop for rows in taken)], [*(rows.start for rows in taken), self.num_rows]
        gaps = [stop - start for start, stop in zip(starts, stops, strict=True)]
        missing = max(0, num_adapters - sum(gap // rank for gap in gaps))
        extra_rows = max(0, missing * rank - gaps[-1] % rank) if missing else 0
        self.grow(self.max_adapters + max(0, num_adapters - free_slots), self.num_rows + extra_rows)

    def load(self, key: str, adapter: Mapping[str, LoraMatrices]) -> int:
        """Copy an adapter into free rows: its slot. Nothing changes when it does not fit."""
        self._free_slot(key)
        for path, matrices in adapter.items():
            self._check(key, path, matrices, matrices.a_rK.shape[0])
        slot = self._take(key, {path: (given.a_rK.shape[0], given.scale) for path, given in adapter.items()})
        self._copy(slot, adapter)
        return slot

    def create(self, key: str, targets: Mapping[str, tuple[int, float]]) -> int:
        """Take rows for an adapter with this (rank, scale) by path, all zero: its slot. Errors as in `load`."""
        slot = self._take(key, targets)
        for part in self._used(slot).values():
            for rows in rows_of(part, slot):
                rows.zero_()
        return slot

    def copy_slot(self, source: int, key: str) -> int:
        """A frozen copy of an adapter as it is now: its slot. Errors as in `load`."""
        used = self._used(source)
        found = {path: part.rows_of_slot[source] for path, part in used.items()}
        slot = self._take(key, {path: (rows.rank, rows.scale) for path, rows in found.items()})
        for part in used.values():
            for copy, original in zip(rows_of(part, slot), rows_of(part, source), strict=True):
                copy.copy_(original)
        return slot

    def read(self, slot: int) -> dict[str, LoraMatrices]:
        """Copies of an adapter's matrices by path, in PEFT's orientation."""
        adapter = {}
        for path, part in self._used(slot).items():
            a_rK, b_rN = rows_of(part, slot)
            adapter[path] = LoraMatrices(a_rK.clone(), b_rN.T.clone(), part.rows_of_slot[slot].scale)
        return adapter

    def write(self, slot: int, adapter: Mapping[str, LoraMatrices]) -> None:
        """Overwrite matrices of an adapter in place; nothing changes unless all have their target's rank and scale."""
        used = self._used(slot)
        for path, matrices in adapter.items():
            if path not in used:
                raise InvalidRequestError(f"the adapter in slot {slot} does not change {path!r}; write what it targets")
            rows = used[path].rows_of_slot[slot]
            self._check(f"in slot {slot}", path, matrices, rows.rank)
            if matrices.scale != rows.scale:
                raise InvalidRequestError(
                    f"the adapter in slot {slot} has scale {rows.scale} at {path!r}, not {matrices.scale}; "
                    "load the matrices as another adapter"
                )
        self._copy(slot, adapter)

    def leaves(self, slot: int) -> dict[str, LoraLeaves]:
        """Train an adapter: its autograd leaves by path, rows of the arena that serving reads; the same each time."""
        found = {}
        for path, part in self._used(slot).items():
            if slot not in part.leaves:
                part.leaves[slot] = _new_leaves(part, slot)
            found[path] = part.leaves[slot]
        return found

    def drop_leaves(self, slot: int) -> None:
        """Train an adapter no longer; its values stay."""
        for part in self._parts.values():
            part.leaves.pop(slot, None)

    def unload(self, slot: int) -> None:
        """Free a slot and its rows."""
        self.drop_leaves(slot)
        self._ranges[slot] = None
        for part in self._parts.values():
            part.rows_of_slot[slot] = NO_ROWS
        self._arenas.write_tables(self._ranges)

    def _used(self, slot: int) -> dict[str, LoraPart]:
        return {path: part for path, part in self._parts.items() if part.rows_of_slot[slot].rank}

    def _copy(self, slot: int, adapter: Mapping[str, LoraMatrices]) -> None:
        with torch.no_grad():
            for path, matrices in adapter.items():
                a_rK, b_rN = rows_of(self._parts[path], slot)
                a_rK.copy_(matrices.a_rK)
                b_rN.copy_(matrices.b_Nr.T)

    def _take(self, key: str, targets: Mapping[str, tuple[int, float]]) -> int:
        """A free slot with free rows, after every check."""
        slot = self._free_slot(key)
        if not targets:
            raise InvalidRequestError(f"adapter {key!r} changes no matrix; name at least one target")
        for path, (rank, _) in targets.items():
            self._check_target(key, path)
            if rank < 1:
                raise InvalidRequestError(f"adapter {key!r} has rank {rank} at {path!r}; a rank is 1 or more")
        rows = self._free_rows(key, max(rank for rank, _ in targets.values()))
        for path, (rank, scale) in targets.items():
            self._parts[path].rows_of_slot[slot] = LoraRows(rows.start, rank, scale)
        self._ranges[slot] = rows
        for part in self._parts.values():  # kernels multiply whole ranges, and what was there may be no number
            part.b_RN[rows.start + part.rows_of_slot[slot].rank : rows.stop].zero_()
        self._arenas.write_tables(self._ranges)
        return slot

    def _free_slot(self, key: str) -> int:
        for slot, rows in enumerate(self._ranges):
            if rows is None:
                return slot
        raise AdapterLimitError(
            f"adapter {key!r} exceeds the limit of {self.max_adapters} adapters on one backbone; "
            "unload one or raise max_adapters (--max-adapters)",
            limit=self.max_adapters,
        )

    def _free_rows(self, key: str, rank: int) -> range:
        start = 0
        for taken in sorted((rows for rows in self._ranges if rows is not None), key=lambda rows: rows.start):
            if taken.start - start >= rank:
                break
            start = taken.stop
        if start + rank > self.num_rows:
            used = sum(len(rows) for rows in self._ranges if rows is not None)
            raise AdapterLimitError(
                f"adapter {key!r} has rank {rank}, and {self.num_rows - used} of {self.num_rows} rank rows are free; "
                "unload one or raise adapter_rank_budget (--adapter-rank-budget)",
                rank=rank,
            )
        return range(start, start + rank)

    def _check_target(self, key: str, path: str) -> None:
        if path not in self._parts:
            raise InvalidRequestError(f"adapter {key!r} changes {path!r}, which this model does not have")

    def _check(self, key: str, path: str, matrices: LoraMatrices, rank: int) -> None:
        self._check_target(key, path)
        part = self._parts[path]
        expected = (rank, part.a_RK.shape[1]), (part.b_RN.shape[1], rank)
        found = tuple(matrices.a_rK.shape), tuple(matrices.b_Nr.shape)
        if expected != found:
            raise InvalidRequestError(
                f"adapter {key!r}: the matrices A and B of {path!r} have shapes {found}, expected {expected}"
            )


def _new_leaves(part: LoraPart, slot: int) -> LoraLeaves:
    with torch.inference_mode(mode=False):
        a_rK, b_rN = (rows.detach().requires_grad_() for rows in rows_of(part, slot))
    if a_rK.dtype is not torch.float32:
        a_rK.grad_dtype = b_rN.grad_dtype = torch.float32
    return LoraLeaves(a_rK, b_rN, part.rows_of_slot[slot].scale)
