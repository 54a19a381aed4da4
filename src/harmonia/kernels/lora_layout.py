"""How adapters' rows lie in memory, on the host and on the device.

Shapes: K input features, N output features, M of one part, P parts of a linear layer, R rank rows of the arena, r of
one adapter, S slots of a bank, T tokens, X tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

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


@dataclass(frozen=True, slots=True)
class LoraLeaves:
    """One adapter's change of one matrix while it is trained: autograd leaves that are rows of the arena."""

    a_rK: Tensor
    b_rN: Tensor
    scale: float


@dataclass(slots=True)
class LoraTable:
    """Which rows of every arena of a bank belong to which slot: what kernels read on the device."""

    ranges_S2: Tensor
    """First row and end of each slot, int32; the same address for as long as `AdapterBank.generation` is the same."""
    num_rows: int
    longest: int = 1
    """At least the rows of the longest range so far."""
    ranges: list[range] = field(default_factory=list)
    """The same on the host; empty ranges of free slots."""

    @property
    def width(self) -> int:
        """Rows that a kernel takes at a time."""
        return 16 if self.longest <= 16 else 32

    @property
    def columns(self) -> int:
        """Low-rank sums of one token and part: rows of the longest range, in whole tiles."""
        return -(-self.longest // self.width) * self.width


@dataclass(slots=True)
class LoraArena:
    """The rows of all parts of one linear layer, side by side."""

    a_PRK: Tensor
    b: Tensor
    """The parts' B (R, M), one after another."""
    scales_PR: Tensor
    """fp32: of each row the scale of its adapter; 0 where a part does not use it."""
    starts: tuple[int, ...]
    """First output feature of each part."""
    sizes: tuple[int, ...]
    table: LoraTable
    is_used: bool = False
    """Some adapter has changed a part of the layer; another `AdapterBank.generation` once one does."""

    def part(self, index: int) -> tuple[Tensor, Tensor]:
        """A and B of one part."""
        num_rows, before, size = self.a_PRK.shape[1], sum(self.sizes[:index]), self.sizes[index]
        return self.a_PRK[index], self.b[num_rows * before : num_rows * (before + size)].view(num_rows, size)


@dataclass(slots=True)
class LoraPart:
    """Arena of one part of a linear layer, shared by all adapters."""

    a_RK: Tensor
    b_RN: Tensor
    rows_of_slot: list[LoraRows]
    leaves: dict[int, LoraLeaves] = field(default_factory=dict)
    """By slot, of adapters in training; the others are frozen."""
    arena: LoraArena | None = None
    """Of the whole layer, where a bank owns the part."""


class LoraRoutes(NamedTuple):
    """Where the adapters of a batch stand in a bank."""

    slots_T: Tensor
    tiles_X4: Tensor
    """Tiles of rows that the batch uses; see `lora_triton.plan_tiles`."""
    max_tiles: int
    """Bound of their number that the host knows."""
    width: int
    columns: int
    """Of the bank's table when the tiles were listed: loading other adapters may change it meanwhile."""


class LoraRuns(NamedTuple):
    """The same for few tokens: tiles of neighbouring tokens with the same adapter."""

    tiles_T4: Tensor
    """First token, counts, first row and rows of each tile; see `lora_decode_triton`. Zero tokens behind the last."""
    programs: int
    """How many tiles are worked on at the same time; more of them take turns."""
    width: int
    columns: int
