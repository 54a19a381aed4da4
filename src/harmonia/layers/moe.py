"""Mixture of experts: each token passes through the few experts that a router picks.

Shapes: T tokens, E features, X experts, K experts of one token, N tokens of one expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harmonia.kernels.lora import LoraBatch
from harmonia.layers.linear import Linear, LinearPart
from harmonia.layers.mlp import GatedMlp
from harmonia.layers.parameter import Parameter


@dataclass(frozen=True, slots=True)
class SparseMoe:
    """Weighted sum of the chosen experts. Neither router nor experts carry adapters."""

    router: Linear
    experts: tuple[GatedMlp, ...]
    num_chosen: int
    normalize: bool
    """Scale the weights of a token's experts to sum to one."""

    def __call__(self, x_TE: Tensor, adapters: LoraBatch | None) -> Tensor:
        """Apply to normalised inputs: y_TE."""
        weight_TK, expert_TK = self._route(x_TE)
        # Sorting by expert makes each expert's tokens one range, with a single transfer of counts to the host.
        order_TK = expert_TK.flatten().argsort(stable=True)
        counts = self._counts(expert_TK)
        token_TK = order_TK // self.num_chosen
        # Splits rather than slices: the gradient of a slice is as large as what it was cut from.
        tokens = token_TK.split(counts)
        inputs = x_TE.index_select(0, token_TK).split(counts)
        weights = weight_TK.flatten().index_select(0, order_TK)[:, None].split(counts)
        y_TE = torch.zeros_like(x_TE)
        for expert, token_N, x_NE, weight_N1 in zip(self.experts, tokens, inputs, weights, strict=True):
            if len(token_N):
                y_TE.index_add_(0, token_N, expert(x_NE, None) * weight_N1)
        return y_TE

    def _counts(self, expert_TK: Tensor) -> list[int]:
        """Tokens of each expert. Without data, when memory is planned, all alike: the memory in all is the same."""
        if expert_TK.is_meta:
            share, rest = divmod(expert_TK.numel(), len(self.experts))
            return [share + (expert < rest) for expert in range(len(self.experts))]
        return torch.bincount(expert_TK.flatten(), minlength=len(self.experts)).tolist()

    def _route(self, x_TE: Tensor) -> tuple[Tensor, Tensor]:
        probs_TX = self.router(x_TE, None).softmax(dim=-1, dtype=torch.float32)
        weight_TK, expert_TK = probs_TX.topk(self.num_chosen, dim=-1)
        if self.normalize:
            weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
        return weight_TK.to(x_TE.dtype), expert_TK

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        """Router and experts."""
        yield from self.router.parameters(prefix)
        for index, expert in enumerate(self.experts):
            yield from expert.parameters(f"{prefix}experts.{index}.")

    def linears(self, prefix: str) -> Iterator[LinearPart]:
        """None."""
        return iter(())
