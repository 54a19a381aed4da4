"""Gated feed-forward layer. Shapes: T tokens, E features, F inner features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from harmonia.kernels.activation import Activation, gated_activation
from harmonia.kernels.lora import LoraBatch
from harmonia.kernels.matmul import gated_matmul
from harmonia.layers.linear import Linear, LinearPart, WeightFormat
from harmonia.layers.parameter import Parameter


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """down(activation(gate(x)) * up(x))."""

    gate_up: Linear
    down: Linear
    activation: Activation

    @staticmethod
    def create(
        hidden_size: int, inner_size: int, activation: Activation, fmt: WeightFormat, *, bias: bool = False
    ) -> GatedMlp:
        """Unfilled layer."""
        sizes = {"gate_proj": inner_size, "up_proj": inner_size}
        gate_up = Linear.create(hidden_size, sizes, fmt, bias=bias)
        down = Linear.create(inner_size, {"down_proj": hidden_size}, fmt, bias=bias)
        return GatedMlp(gate_up, down, activation)

    def __call__(self, x_TE: Tensor, adapters: LoraBatch | None) -> Tensor:
        """Apply to normalised inputs: y_TE."""
        if adapters is None:
            inner_TF = gated_matmul(x_TE, self.gate_up.weight, self.gate_up.bias_N, self.activation)
        else:
            inner_TF = gated_activation(self.gate_up(x_TE, adapters), self.activation)
        return self.down(inner_TF, adapters)

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        """The three projections."""
        yield from self.gate_up.parameters(prefix)
        yield from self.down.parameters(prefix)

    def linears(self, prefix: str) -> Iterator[LinearPart]:
        """The three projections."""
        yield from self.gate_up.linears(prefix)
        yield from self.down.linears(prefix)
