"""Token embeddings. Shapes: T tokens, V vocabulary, E features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harmonia.kernels.matmul import weight_rows
from harmonia.kernels.weight import Weight
from harmonia.layers.linear import WeightFormat
from harmonia.layers.parameter import Parameter, pack_weight, weight_bytes


@dataclass(frozen=True, slots=True)
class Embedding:
    """A row of features for each token id, times a constant."""

    weight: Weight
    vocab_size: int
    hidden_size: int
    dtype: torch.dtype
    scale: float
    is_head: bool
    """The table also scores next tokens."""

    @staticmethod
    def create(
        vocab_size: int, hidden_size: int, fmt: WeightFormat, *, scale: float = 1.0, is_head: bool = False
    ) -> Embedding:
        """Unfilled table; the scale is rounded to the type of activations, as the families' own code does."""
        rounded = float(torch.tensor(scale, dtype=fmt.dtype))
        return Embedding(fmt.matrix(vocab_size, hidden_size), vocab_size, hidden_size, fmt.dtype, rounded, is_head)

    def __call__(self, token_ids_T: Tensor) -> Tensor:
        """Rows of these tokens: x_TE. The gradient of a trained table goes to its leaf, as that of a tied head does."""
        x_TE = weight_rows(self.weight, token_ids_T).to(self.dtype)
        return x_TE if self.scale == 1.0 else x_TE * self.scale

    @property
    def num_bytes(self) -> int:
        """Bytes of the table."""
        return weight_bytes(self.weight)

    def pack(self) -> None:
        """A table that is only looked up stays as it is."""
        if self.is_head:
            pack_weight(self.weight)

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        """The table."""
        yield Parameter(f"{prefix}weight", (self.vocab_size, self.hidden_size), self, self.weight.fill)
