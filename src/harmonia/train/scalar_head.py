"""The scalar head: one row that turns hidden states into scores. Shapes: C rows of a chunk, E features."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from harmonia.errors import UnsupportedModelError
from harmonia.kernels.matmul import DenseWeight, matmul


class ScalarHead:
    """score = hidden state · weight, in fp32 whatever the dtype of the model.

    `weight_E` is an fp32 autograd leaf when it trains; `backward` adds into its `.grad`, which the caller may have set
    to a view of a larger buffer.
    """

    def __init__(self, weight_E: Tensor) -> None:
        self.weight_E = weight_E

    @classmethod
    def zeros(cls, num_features: int, device: torch.device | str = "cpu") -> Self:
        """A new head: every score is 0 until it was trained."""
        return cls(torch.zeros(num_features, dtype=torch.float32, device=device))

    @classmethod
    def loaded(cls, weight: Tensor, num_features: int) -> Self:
        """A head from a stored [E] or [1, E] of any float dtype; `UnsupportedModelError` for other shapes."""
        if weight.shape not in ((num_features,), (1, num_features)) or not weight.is_floating_point():
            raise UnsupportedModelError(
                f"a scalar head of {num_features} features cannot be read from {weight.dtype} of shape "
                f"{list(weight.shape)}: store one row of {num_features} floats"
            )
        return cls(weight.detach().reshape(num_features).float().clone())

    def scores(self, hidden_CE: Tensor) -> Tensor:
        """values_C in fp32, outside of autograd: `backward` is the derivative."""
        with torch.no_grad():
            # As a product whose sums do not depend on the number of rows: a score is the same in every batch.
            row = DenseWeight(self.weight_E.detach()[None], is_final=True, invariant=True)
            return matmul(hidden_CE.float(), row)[:, 0]

    def backward(self, hidden_CE: Tensor, dvalues_C: Tensor) -> Tensor:
        """dhidden_CE in the dtype of the hidden states; adds to the gradient of the weight unless that is frozen."""
        with torch.no_grad():
            if self.weight_E.requires_grad:
                if self.weight_E.grad is None:
                    self.weight_E.grad = torch.zeros_like(self.weight_E)
                self.weight_E.grad.addmv_(hidden_CE.float().T, dvalues_C)
            return (dvalues_C[:, None] * self.weight_E).to(hidden_CE.dtype)
