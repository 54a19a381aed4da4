"""Root-mean-square norm. Shapes: T tokens, E features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from harmonia.kernels.norm import add_rms_norm, rms_norm
from harmonia.layers.linear import LinearPart, WeightFormat
from harmonia.layers.parameter import Parameter, vector_parameter


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """x / rms(x) * weight."""

    weight_E: Tensor
    eps: float
    offset: float = 0.0
    """Added to what the checkpoint holds: 1 where a family stores the weight less one."""

    @staticmethod
    def create(size: int, eps: float, fmt: WeightFormat, *, offset: float = 0.0) -> RmsNorm:
        """Unfilled norm over `size` features."""
        return RmsNorm(fmt.vector(size), eps, offset)

    def __call__(self, x_TE: Tensor) -> Tensor:
        """Normalise over the last dimension."""
        return rms_norm(x_TE, self.weight_E, self.eps)

    def add(self, x_TE: Tensor, residual_TE: Tensor | None) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual); no residual means none was begun yet."""
        if residual_TE is None:
            return rms_norm(x_TE, self.weight_E, self.eps), x_TE
        return add_rms_norm(x_TE, residual_TE, self.weight_E, self.eps)

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        """The weight."""
        yield vector_parameter(f"{prefix}weight", self.weight_E, offset=self.offset)

    def linears(self, prefix: str) -> Iterator[LinearPart]:
        """None."""
        return iter(())
