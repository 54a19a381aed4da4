"""AdamW over flat fp32 state: clip by the global norm, move the masters, round them into what the model computes with.

Decoupled weight decay: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019. Whether the gradient is
finite is decided on its device, so that nothing waits for it.

Shapes: P numbers of everything that moves together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harmonia.kernels import gpu
from harmonia.kernels.native import Impl

BETAS = (0.9, 0.999)
EPS = 1e-8
_NORM_EPS = 1e-6


class AdamState(NamedTuple):
    """fp32. Masters and moments are lists of the same shapes; side by side they are P numbers."""

    masters: Sequence[Tensor]
    means: Sequence[Tensor]
    squares: Sequence[Tensor]
    gradient_P: Tensor
    """Sum over samples; zero after a step."""
    gradients: Sequence[Tensor]
    """The same memory in the shapes of the masters."""


class AdamStep(NamedTuple):
    """Settings of one step."""

    lr: float
    wd: float
    max_norm: float
    """Longest mean gradient that is not clipped; 0 clips nothing."""
    num_samples: int
    """What the gradient is divided by."""
    number: int
    """Counts from 1, for the bias correction."""


def adamw(state: AdamState, step: AdamStep, leaves: Sequence[Tensor], impl: Impl = "auto") -> Tensor:
    """Move the masters and write them to `leaves`: the norm of the mean gradient before clipping, on the device.

    Not finite: nothing moves. The gradient is forgotten either way. `leaves` are of any type, contiguous, and side by
    side P numbers; a leaf may be a master itself.
    """
    norm = torch.linalg.vector_norm(state.gradient_P) / step.num_samples
    if impl == "triton" or (impl == "auto" and len(state.masters) == 1 and gpu.usable(*state.masters, *leaves)):
        # imported where it runs: a CPU install has no Triton
        from harmonia.kernels.optimizer_triton import adamw_triton

        flat = (*state.masters, state.gradient_P, *state.means, *state.squares)
        mean_short, square_short = 1 - BETAS[0] ** step.number, 1 - BETAS[1] ** step.number
        numbers = (step.lr / mean_short, 1 - step.lr * step.wd, square_short**-0.5, 1 - BETAS[0], 1 - BETAS[1], EPS)
        adamw_triton(flat, norm, _clip(norm, step.max_norm) / step.num_samples, numbers, leaves)
    else:
        _adamw_eager(state, step, norm, leaves)
    return norm


def _clip(norm: Tensor, max_norm: float) -> Tensor:
    """What a mean gradient of this norm is multiplied by."""
    return torch.clamp(max_norm / (norm + _NORM_EPS), max=1.0) if max_norm > 0 else torch.ones_like(norm)


def _adamw_eager(state: AdamState, step: AdamStep, norm: Tensor, leaves: Sequence[Tensor]) -> None:
    torch._fused_adamw_(
        list(state.masters),
        list(state.gradients),
        list(state.means),
        list(state.squares),
        [],
        [torch.full((), float(step.number), device=norm.device)] * len(state.masters),
        lr=step.lr,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=step.wd,
        eps=EPS,
        amsgrad=False,
        maximize=False,
        grad_scale=step.num_samples / _clip(norm, step.max_norm),
        found_inf=(~torch.isfinite(norm)).float(),
    )
    state.gradient_P.zero_()
    write_leaves(state.masters, leaves)


@torch.no_grad()
def write_leaves(masters: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Round masters into leaves, as `adamw` does."""
    if len(masters) == 1:
        masters = masters[0].view(-1).split([leaf.numel() for leaf in leaves])
    pairs = [
        (leaf.detach(), master.view_as(leaf))
        for leaf, master in zip(leaves, masters, strict=True)
        if leaf.data_ptr() != master.data_ptr()
    ]
    if pairs:
        torch._foreach_copy_([leaf for leaf, _ in pairs], [master for _, master in pairs])
