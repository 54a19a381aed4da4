"""Linear layers whose parts share one matrix product and may carry adapters.

Shapes: T tokens, K input features, N output features of all parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from harmonia.kernels.fp8_weight import Fp8Weight, ScaledRows
from harmonia.kernels.lora import LoraBatch, LoraLeaves, LoraPart, PlacedLora
from harmonia.kernels.matmul import adapted_matmul
from harmonia.kernels.weight import DenseWeight, Int8Weight, Weight
from harmonia.layers.parameter import Parameter, Vector, pack_weight, vector_parameter, weight_bytes

__all__ = ["Linear", "LinearPart", "LoraLeaves", "LoraPart", "Part", "WeightFormat"]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """In which type and where weights are kept."""

    dtype: torch.dtype
    """Type of activations, and of weights unless `int8` or `fp8`."""
    device: torch.device
    int8: bool = False
    """Keep matrices in 8 bits."""
    invariant: bool = False
    """Results of a token do not depend on the others in its batch."""
    fp8: bool = False
    """Keep the matrices of layers in e4m3; see kernels/fp8.py."""
    fp8_side: int = 0
    """Side of the squares of a matrix that share a scale; 0: one scale per output feature."""

    @property
    def unrounded(self) -> WeightFormat:
        """The same with matrices in the type of activations."""
        return replace(self, int8=False, fp8=False)

    def matrix(self, num_out: int, num_in: int, starts: tuple[int, ...] = ()) -> Weight:
        """Unfilled storage of a matrix; starts: first rows of its parts."""
        if self.fp8:
            side = self.fp8_side
            return Fp8Weight.empty(num_out, num_in, self.device, side=side, starts=starts, invariant=self.invariant)
        if self.int8:
            return Int8Weight.empty(num_out, num_in, self.device, invariant=self.invariant)
        return DenseWeight.empty(num_out, num_in, self.dtype, self.device, invariant=self.invariant)

    def vector(self, size: int) -> Tensor:
        """Unfilled storage of a vector."""
        return torch.empty(size, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Part:
    """A range of output features with a name of its own, such as `q_proj` in a fused projection."""

    name: str
    start: int
    size: int


@dataclass(slots=True)
class Linear:
    """y = x W^T + b, several named parts side by side, plus the low-rank additions of adapters."""

    parts: tuple[Part, ...]
    num_in: int
    weight: Weight
    bias_N: Tensor | None
    lora: dict[str, LoraPart] = field(default_factory=dict)
    """By part name; filled by the adapter bank."""
    bias: Vector | None = field(init=False)
    """`bias_N` as one parameter's storage."""

    def __post_init__(self) -> None:
        self.bias = None if self.bias_N is None else Vector(self.bias_N)

    @staticmethod
    def create(num_in: int, sizes: dict[str, int], fmt: WeightFormat, *, bias: bool = False) -> Linear:
        """Unfilled layer with these parts, in order."""
        parts, start = [], 0
        for name, size in sizes.items():
            parts.append(Part(name, start, size))
            start += size
        weight = fmt.matrix(start, num_in, tuple(part.start for part in parts))
        return Linear(tuple(parts), num_in, weight, fmt.vector(start) if bias else None)

    def part(self, name: str) -> Part:
        """The part of that name."""
        return next(part for part in self.parts if part.name == name)

    def __call__(self, x_TK: Tensor, adapters: LoraBatch | None) -> Tensor:
        """Apply to a batch; gradients reach x and what is trained: the weight, the bias, adapters of the segments."""
        return adapted_matmul(x_TK, self.weight, self.bias_N, self._placed() if adapters is not None else (), adapters)

    def _placed(self) -> list[PlacedLora]:
        found = ((part, self.lora.get(part.name)) for part in self.parts)
        return [PlacedLora(part.start, part.size, lora) for part, lora in found if lora is not None]

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight; biases are storages of their own."""
        return weight_bytes(self.weight)

    def pack(self) -> None:
        """Put the filled weight into the form that is multiplied fastest."""
        pack_weight(self.weight)

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        """Weight, and bias if any, of every part."""
        for part in self.parts:
            fill = partial(self._fill, part.start)
            scaled = partial(self._fill_scaled, part.start) if isinstance(self.weight, Fp8Weight) else None
            yield Parameter(f"{prefix}{part.name}.weight", (part.size, self.num_in), self, fill, scaled)
            if self.bias is not None:
                values = self.bias.values[part.start : part.start + part.size]
                yield vector_parameter(f"{prefix}{part.name}.bias", values, storage=self.bias)

    def _fill(self, first: int, start: int, rows: Tensor) -> None:
        self.weight.fill(first + start, rows)

    def _fill_scaled(self, first: int, start: int, rows: ScaledRows) -> None:
        assert isinstance(self.weight, Fp8Weight)
        self.weight.fill_scaled(first + start, rows)

    def linears(self, prefix: str) -> Iterator[LinearPart]:
        """Every part."""
        for part in self.parts:
            yield LinearPart(f"{prefix}{part.name}", self, part.name)


class LinearPart(NamedTuple):
    """A named projection, as adapters address it."""

    path: str
    """Such as `self_attn.q_proj`, below its layer."""
    linear: Linear
    part: str
    """Its part of `linear`, such as `q_proj`."""
