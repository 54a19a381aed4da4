"""Weights in 8-bit floating point (e4m3), whose scales are shared by tiles: an output feature each, or squares.

Shapes: T tokens, K input features, N output features, M rows of a part, G rows and B columns of tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harmonia.errors import InvalidRequestError
from harmonia.kernels import gpu

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of e4m3, to which the largest of a tile is scaled."""
WEIGHT_STEPS, TOKEN_STEPS = 8, 4
"""Scales that are tried for a weight and for a token; see `quantise`."""
_LEAST = 1e-12
_NATIVE_CAPABILITY = (8, 9)


class Tile(NamedTuple):
    """Neighbouring values that share a scale."""

    rows: int
    columns: int

    def grid(self, num_rows: int, num_columns: int) -> tuple[int, int]:
        """How many cover a matrix, those at its edges included."""
        return -(-num_rows // self.rows), -(-num_columns // self.columns)


class ScaledRows(NamedTuple):
    """Rows of a matrix as an fp8 checkpoint holds them."""

    values_MK: Tensor
    """e4m3."""
    scale_GB: Tensor
    """float32; each value is multiplied by that of its tile."""
    tile: Tile

    def dense(self) -> Tensor:
        """The values in fp32."""
        return dequantise(self.values_MK, self.scale_GB, self.tile)


def quantise(x_MK: Tensor, tile: Tile, num_steps: int = 1) -> tuple[Tensor, Tensor]:
    """(e4m3 values_MK, fp32 scale_GB), to the nearest, with the scales whose errors, to the fourth power, are least.

    So many scales are tried: the one with which the largest of a tile becomes `LARGEST`, and others up to twice that,
    with which the same values would come again. A few large weights meet a few large activations; both must be near.
    """
    x_MK = x_MK.float()
    largest_GB = _by_tile(x_MK, tile).abs().amax(dim=(1, 3)).clamp(min=_LEAST)
    most_GB = torch.full_like(largest_GB, LARGEST)  # torch divides by and into numbers in two roundings
    inverse_GB, scale_GB = most_GB / largest_GB, largest_GB / most_GB
    if num_steps == 1:
        return _scaled(x_MK, inverse_GB, tile).to(E4M3), scale_GB
    ratio = 2 ** (1 / num_steps)
    best, best_GB, least_GB = scale_GB, inverse_GB, _error(x_MK, inverse_GB, tile)
    for step in range(1, num_steps):
        inverse_GB, scale_GB = inverse_GB * (1 / ratio), scale_GB * ratio
        error_GB = _error(x_MK, inverse_GB, tile) * ratio ** (4 * step)
        is_better = error_GB < least_GB
        best, best_GB = torch.where(is_better, scale_GB, best), torch.where(is_better, inverse_GB, best_GB)
        least_GB = torch.minimum(error_GB, least_GB)
    return _scaled(x_MK, best_GB, tile).to(E4M3), best


def _scaled(x_MK: Tensor, inverse_GB: Tensor, tile: Tile) -> Tensor:
    return (x_MK * spread(inverse_GB, tile, x_MK.shape)).clamp_(-LARGEST, LARGEST)


def _error(x_MK: Tensor, inverse_GB: Tensor, tile: Tile) -> Tensor:
    """By tile, the sum of fourth powers, in units of the scale."""
    scaled_MK = _scaled(x_MK, inverse_GB, tile)
    difference_MK = scaled_MK.sub_(scaled_MK.to(E4M3).float())
    return _by_tile(difference_MK.square_().square_(), tile).sum(dim=(1, 3))


def _by_tile(x_MK: Tensor, tile: Tile) -> Tensor:
    """As (rows of tiles, rows of one, columns of tiles, columns of one), with zeros where tiles reach beyond."""
    rows, columns = tile.grid(*x_MK.shape)
    pad = columns * tile.columns - x_MK.shape[1], rows * tile.rows - x_MK.shape[0]
    padded = F.pad(x_MK, (0, pad[0], 0, pad[1])) if any(pad) else x_MK
    return padded.reshape(rows, tile.rows, columns, tile.columns)


def dequantise(values_MK: Tensor, scale_GB: Tensor, tile: Tile, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values times the scales of their tiles."""
    return (values_MK.float() * spread(scale_GB, tile, values_MK.shape)).to(dtype)


def spread(scale_GB: Tensor, tile: Tile, shape: torch.Size) -> Tensor:
    """A scale for every value of a matrix, or for every row where the columns share one."""
    num_rows, num_columns = shape
    if tile.rows > 1:
        scale_GB = scale_GB.repeat_interleave(tile.rows, 0)[:num_rows]
    if scale_GB.shape[1] > 1:
        scale_GB = scale_GB.repeat_interleave(tile.columns, 1)[:, :num_columns]
    return scale_GB


def is_native(x_TK: Tensor) -> bool:
    """Whether kernels compute in e4m3 on the device."""
    return gpu.usable(x_TK) and _capability(x_TK.device) >= _NATIVE_CAPABILITY


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A weight in e4m3. Products quantise activations too: per token, or per token and tile column."""

    weight_NK: Tensor
    """e4m3."""
    scale_GB: Tensor
    """float32."""
    tile: Tile
    invariant: bool = False
    """Products sum in one order for any number of rows."""

    @staticmethod
    def empty(
        num_out: int,
        num_in: int,
        device: torch.device,
        *,
        side: int = 0,
        starts: tuple[int, ...] = (),
        invariant: bool = False,
    ) -> Fp8Weight:
        """Storage to be filled row range by row range.

        side: of the squares that share a scale; 0: one scale per output feature. starts: first rows of parts that begin
        with a square of their own; where they do not end with a whole one, scales are repeated for fewer rows.
        """
        tile = Tile(math.gcd(side, *starts), min(side, num_in)) if side else Tile(1, num_in)
        return Fp8Weight(
            torch.empty(num_out, num_in, dtype=E4M3, device=device),
            torch.empty(tile.grid(num_out, num_in), dtype=torch.float32, device=device),
            tile,
            invariant,
        )

    @property
    def leaf(self) -> None:
        """Rounded weights are never trained."""
        return None

    @property
    def is_per_channel(self) -> bool:
        """Each output feature has one scale."""
        return self.tile.rows == 1 and self.scale_GB.shape[1] == 1

    @property
    def token_tile(self) -> Tile:
        """What shares a scale in activations: a token, or as many of its features as a tile of the weight has.

        The latter is what checkpoints with square tiles are made for.
        """
        return Tile(1, self.tile.columns)

    @property
    def num_bytes(self) -> int:
        """Bytes of values and scales."""
        return self.weight_NK.nbytes + self.scale_GB.nbytes

    def require_grad(self) -> Tensor:
        """Refused: `InvalidRequestError`."""
        raise InvalidRequestError(
            "the weights are kept in fp8, and full weights train in float32 or bfloat16; "
            "load the model in one of these, or train an adapter on it"
        )

    def freeze(self) -> None:
        """Nothing to do."""

    def fill(self, start: int, part_MK: Tensor) -> None:
        """Quantise rows `start` to `start + M`, which begin with a tile, where the weight is: a GPU is faster."""
        assert start % self.tile.rows == 0, "rows are filled by whole tiles"
        part_MK = part_MK.to(self.weight_NK.device)
        if self.is_per_channel and is_native(part_MK):
            # imported where it runs: a CPU install has no Triton
            from harmonia.kernels.fp8_round_triton import quantise_into

            rows = slice(start, start + part_MK.shape[0])
            values_MK, scale_M1 = self.weight_NK[rows], self.scale_GB[rows]
            quantise_into(part_MK, values_MK, scale_M1, self.tile.columns, WEIGHT_STEPS)
        else:
            self._keep(start, *quantise(part_MK, self.tile, WEIGHT_STEPS))

    def fill_scaled(self, start: int, part: ScaledRows) -> None:
        """Take rows `start` to `start + M` as they were stored."""
        rows = self.tile.rows
        scale_GB = (
            part.scale_GB.repeat_interleave(part.tile.rows // rows, 0) if part.tile.rows > rows else part.scale_GB
        )
        self._keep(start, part.values_MK, scale_GB[: -(-part.values_MK.shape[0] // rows)])

    def _keep(self, start: int, values_MK: Tensor, scale_GB: Tensor) -> None:
        first = start // self.tile.rows
        self.weight_NK[start : start + values_MK.shape[0]].copy_(values_MK)
        self.scale_GB[first : first + scale_GB.shape[0]].copy_(scale_GB)

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows by index, dequantised."""
        values_TK = self.weight_NK.view(torch.uint8)[ids_T].view(E4M3)  # not every build indexes e4m3
        return dequantise(values_TK, self.scale_GB[ids_T // self.tile.rows], self.token_tile)

    def row_range(self, start: int, stop: int) -> Tensor:
        """Rows from one that begins a tile, dequantised."""
        first, last = start // self.tile.rows, -(-stop // self.tile.rows)
        return dequantise(self.weight_NK[start:stop], self.scale_GB[first:last], self.tile)

    def columns(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Columns from one that begins a tile, dequantised."""
        first, last = start // self.tile.columns, -(-stop // self.tile.columns)
        return dequantise(self.weight_NK[:, start:stop], self.scale_GB[:, first:last], self.tile, dtype)
