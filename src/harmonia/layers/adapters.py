"""The adapter bank: an arena of rank rows that all adapters of a backbone share.

Every adapted matrix has an arena of the same number of rows. An adapter takes one contiguous range of rows, as many as
its largest rank, in all of them; a matrix that it does not target, or targets with a lower rank, uses fewer.
Shapes: K input features, N output features of one part, R rank rows of the arena.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harmonia.errors import AdapterLimitError, InvalidRequestError
from harmonia.kernels.lora import LoraRows
from harmonia.layers.linear import Linear, LoraPart, WeightFormat

_NO_ROWS = LoraRows(0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class AdapterTarget:
    """A named part of a linear layer that adapters may change."""

    path: str
    """Such as `model.layers.0.self_attn.q_proj`."""
    linear: Linear
    part: str


@dataclass(frozen=True, slots=True)
class LoraMatrices:
    """One adapter's change of one target: W + scale * B A."""

    a_rK: Tensor
    b_Nr: Tensor
    scale: float


class AdapterBank:
    """Slots 0 to `max_adapters - 1`, each a range of the arena's rows."""

    def __init__(
        self, targets: Iterable[AdapterTarget], *, max_adapters: int, num_rows: int, fmt: WeightFormat
    ) -> None:
        self.max_adapters = max_adapters
        self.num_rows = num_rows
        self._ranges: list[range | None] = [None] * max_adapters
        self._parts: dict[str, LoraPart] = {}
        for target in targets if max_adapters else ():
            size = target.linear.part(target.part).size
            part = LoraPart(
                torch.zeros(num_rows, target.linear.num_in, dtype=fmt.dtype, device=fmt.device),
                torch.zeros(num_rows, size, dtype=fmt.dtype, device=fmt.device),
                [_NO_ROWS] * max_adapters,
            )
            target.linear.lora[target.part] = part
            self._parts[target.path] = part

    @property
    def num_bytes(self) -> int:
        """Bytes of the arena."""
        return sum(part.a_RK.nbytes + part.b_RN.nbytes for part in self._parts.values())

    def load(self, key: str, adapter: Mapping[str, LoraMatrices]) -> int:
        """Copy an adapter into free rows: its slot. Nothing changes when it does not fit."""
        slot = self._free_slot(key)
        for path, matrices in adapter.items():
            self._check(key, path, matrices)
        rank = max(matrices.a_rK.shape[0] for matrices in adapter.values())
        rows = self._free_rows(key, rank)
        for path, matrices in adapter.items():
            part, used = self._parts[path], matrices.a_rK.shape[0]
            part.a_RK[rows.start : rows.start + used].copy_(matrices.a_rK)
            part.b_RN[rows.start : rows.start + used].copy_(matrices.b_Nr.T)
            part.rows_of_slot[slot] = LoraRows(rows.start, used, matrices.scale)
        self._ranges[slot] = rows
        return slot

    def unload(self, slot: int) -> None:
        """Free a slot and its rows."""
        self._ranges[slot] = None
        for part in self._parts.values():
            part.rows_of_slot[slot] = _NO_ROWS

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

    def _check(self, key: str, path: str, matrices: LoraMatrices) -> None:
        part = self._parts.get(path)
        if part is None:
            raise InvalidRequestError(f"adapter {key!r} changes {path!r}, which this model does not have")
        rank = matrices.a_rK.shape[0]
        expected = (rank, part.a_RK.shape[1]), (part.b_RN.shape[1], rank)
        found = tuple(matrices.a_rK.shape), tuple(matrices.b_Nr.shape)
        if expected != found:
            raise InvalidRequestError(
                f"adapter {key!r}: the matrices A and B of {path!r} have shapes {found}, expected {expected}"
            )
