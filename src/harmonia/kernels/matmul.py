"""Matrix products with a weight held in one of several precisions.

Shapes: T tokens, K input features, N output features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A weight in the compute type."""

    weight_NK: Tensor

    @staticmethod
    def empty(num_out: int, num_in: int, dtype: torch.dtype, device: torch.device) -> DenseWeight:
        """Storage to be filled row range by row range."""
        return DenseWeight(torch.empty(num_out, num_in, dtype=dtype, device=device))

    def fill(self, start: int, part_MK: Tensor) -> None:
        """Write rows `start` to `start + M`."""
        self.weight_NK[start : start + part_MK.shape[0]].copy_(part_MK)

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows by index, for embeddings."""
        return self.weight_NK[ids_T]


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight rounded to 8 bits with one scale per output channel; activations keep their precision."""

    weight_NK: Tensor
    """int8."""
    scale_N: Tensor
    """float32."""

    @staticmethod
    def empty(num_out: int, num_in: int, device: torch.device) -> Int8Weight:
        """Storage to be filled row range by row range."""
        return Int8Weight(
            torch.empty(num_out, num_in, dtype=torch.int8, device=device),
            torch.empty(num_out, dtype=torch.float32, device=device),
        )

    def fill(self, start: int, part_MK: Tensor) -> None:
        """Quantise rows `start` to `start + M`, symmetric, to the nearest."""
        stop = start + part_MK.shape[0]
        scale_M = part_MK.float().abs().amax(dim=1).clamp(min=1e-12) / 127.0
        self.scale_N[start:stop] = scale_M
        self.weight_NK[start:stop] = (part_MK.float() / scale_M[:, None]).round().to(torch.int8)

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows by index, dequantised."""
        return self.weight_NK[ids_T].float() * self.scale_N[ids_T][:, None]


Weight = DenseWeight | Int8Weight


def matmul(x_TK: Tensor, weight: Weight, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b: y_TN."""
    if isinstance(weight, DenseWeight):
        return F.linear(x_TK, weight.weight_NK, bias_N)
    y_TN = F.linear(x_TK, weight.weight_NK.to(x_TK.dtype)) * weight.scale_N.to(x_TK.dtype)
    return y_TN if bias_N is None else y_TN + bias_N
