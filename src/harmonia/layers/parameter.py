"""Named tensors of a model: what a checkpoint must provide and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor

from harmonia.kernels.matmul import Weight


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a checkpoint, by its Hugging Face name."""

    name: str
    shape: tuple[int, ...]
    storage: tuple[Tensor, ...]
    """Tensors of the model that hold it, perhaps together with others; for counting bytes."""
    fill: Callable[[int, Tensor], None]
    """fill(start, rows): write rows `start` and following, converted as the storage needs."""


def weight_tensors(weight: Weight) -> tuple[Tensor, ...]:
    """All tensors that a weight consists of."""
    values = (getattr(weight, field.name) for field in fields(weight))
    return tuple(value for value in values if isinstance(value, Tensor))


def vector_parameter(name: str, vector: Tensor, *, offset: float = 0.0) -> Parameter:
    """A one-dimensional parameter kept in `vector`, to whose values `offset` is added in fp32."""

    def fill(start: int, values: Tensor) -> None:
        target = vector[start : start + values.shape[0]]
        target.copy_(values.float() + offset if offset else values)

    return Parameter(name, tuple(vector.shape), (vector,), fill)
