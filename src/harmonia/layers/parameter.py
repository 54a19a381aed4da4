"""Named tensors of a model: what a checkpoint must provide and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from harmonia.kernels.fp8_weight import Fp8Weight, ScaledRows
from harmonia.kernels.weight import DenseWeight, Int8Weight, Weight


class Storage(Protocol):
    """What holds one or several parameters."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        ...

    def pack(self) -> None:
        """Called once all its parameters are filled: take the form that computes fastest."""
        ...


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a checkpoint, by its Hugging Face name."""

    name: str
    shape: tuple[int, ...]
    storage: Storage
    """Where it is kept, perhaps together with others."""
    fill: Callable[[int, Tensor], None]
    """fill(start, rows): write rows `start` and following, converted as the storage needs."""
    fill_scaled: Callable[[int, ScaledRows], None] | None = None
    """The same for rows of an fp8 checkpoint, where the storage keeps them as they are."""

    def take(self, start: int, rows: Tensor | ScaledRows) -> None:
        """Write rows `start` and following in either form."""
        if not isinstance(rows, ScaledRows):
            self.fill(start, rows)
        elif self.fill_scaled is not None:
            self.fill_scaled(start, rows)
        else:
            self.fill(start, rows.dense())


@dataclass(frozen=True, slots=True)
class Vector:
    """A one-dimensional parameter as it is."""

    values: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return self.values.nbytes

    def pack(self) -> None:
        """Nothing to do."""


def vector_parameter(name: str, vector: Tensor, *, offset: float = 0.0, storage: Vector | None = None) -> Parameter:
    """A one-dimensional parameter kept in `vector`, to whose values `offset` is added in fp32.

    `storage` is what `vector` is a part of, if it is not a storage of its own.
    """

    def fill(start: int, values: Tensor) -> None:
        target = vector[start : start + values.shape[0]]
        target.copy_(values.float() + offset if offset else values)

    return Parameter(name, tuple(vector.shape), storage or Vector(vector), fill)


def pack_weight(weight: Weight) -> None:
    """Let a filled matrix take the form that multiplies fastest, now rather than in the first request."""
    if isinstance(weight, DenseWeight):
        weight.pack()


def weight_bytes(weight: Weight) -> int:
    """Bytes of a weight in any of its forms."""
    if isinstance(weight, Fp8Weight):
        return weight.num_bytes
    scales = weight.scale_N.nbytes if isinstance(weight, Int8Weight) else 0
    return weight.weight_NK.nbytes + scales
