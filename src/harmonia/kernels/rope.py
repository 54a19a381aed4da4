"""Rotary position embedding of queries and keys, halves rotated against each other.

Shapes: T tokens, H heads (queries and keys alike), D head size, C positions of the table.
Su et al., RoFormer, 2021.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from harmonia.kernels import native
from harmonia.kernels.native import Impl, kernel
from harmonia.kernels.native_code import float32, float32s, float64s, int64s, share

_FEATURES_PER_THREAD = 32_768
_FORWARD, _BACKWARD = 1.0, -1.0


def apply_rope(x_THD: Tensor, cos_sin_CD: Tensor, positions_T: Tensor, impl: Impl = "auto") -> Tensor:
    """Rotate each head by its token's position; the table holds cos in its first half and sin in its second."""
    if torch.is_grad_enabled() and x_THD.requires_grad:
        return _Rope.apply(x_THD, cos_sin_CD, positions_T, impl)  # type: ignore[no-untyped-call]
    return _rotated(x_THD, cos_sin_CD, positions_T, _FORWARD, impl)


class _Rope(Function):
    """The gradient is turned back by the same angle, so that nothing but positions is kept."""

    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_sin_CD: Tensor, positions_T: Tensor, impl: Impl) -> Tensor:
        ctx.save_for_backward(cos_sin_CD, positions_T)
        ctx.impl = impl
        return _rotated(x_THD, cos_sin_CD, positions_T, _FORWARD, impl)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_THD: Tensor) -> tuple[Tensor, None, None, None]:
        cos_sin_CD, positions_T = ctx.saved_tensors
        return _rotated(d_out_THD, cos_sin_CD, positions_T, _BACKWARD, ctx.impl), None, None, None


def _rotated(x_THD: Tensor, cos_sin_CD: Tensor, positions_T: Tensor, direction: float, impl: Impl) -> Tensor:
    if impl == "eager" or (impl == "auto" and not native.usable(x_THD, cos_sin_CD)):
        return _rotated_eager(x_THD, cos_sin_CD, positions_T, direction)
    tokens, heads, size = x_THD.shape
    if x_THD.stride(2) != 1 or x_THD.stride(1) != size:  # a slice of the fused projection is fine
        x_THD = x_THD.contiguous()
    out_THD = torch.empty(x_THD.shape)
    positions_T = positions_T.long()
    addresses = (x_THD.data_ptr(), cos_sin_CD.data_ptr(), positions_T.data_ptr(), out_THD.data_ptr())
    threads = native.threads_for(out_THD.numel(), _FEATURES_PER_THREAD)
    _rotate.run(threads, *addresses, x_THD.stride(0), tokens, heads, size, direction)
    return out_THD


def _rotated_eager(x_THD: Tensor, cos_sin_CD: Tensor, positions_T: Tensor, direction: float) -> Tensor:
    cos_TD, sin_TD = cos_sin_CD[positions_T].chunk(2, dim=-1)
    cos_T1D, sin_T1D = cos_TD[:, None], direction * sin_TD[:, None]
    left, right = x_THD.float().chunk(2, dim=-1)
    rotated_THD = torch.cat((left * cos_T1D - right * sin_T1D, right * cos_T1D + left * sin_T1D), dim=-1)
    return rotated_THD.to(x_THD.dtype)


@kernel("qqqqqqqqd")
def _rotate(arguments: int, thread: int, num_threads: int) -> None:
    x, table, positions, out, stride, tokens, heads, size = int64s(arguments, 8)
    direction = float32(float64s(arguments, 9)[8])
    half = size // 2
    positions_T = int64s(positions, tokens)
    first, stop = share(tokens, thread, num_threads)
    for token in range(first, stop):
        row = table + 4 * positions_T[token] * size
        cos_D, sin_D = float32s(row, half), float32s(row + 4 * half, half)
        for head in range(heads):
            source = x + 4 * (token * stride + head * size)
            target = out + 4 * (token * heads + head) * size
            left_D, right_D = float32s(source, half), float32s(source + 4 * half, half)
            new_left_D, new_right_D = float32s(target, half), float32s(target + 4 * half, half)
            for d in range(half):
                left, right, cos, sin = left_D[d], right_D[d], cos_D[d], direction * sin_D[d]
                new_left_D[d] = left * cos - right * sin
                new_right_D[d] = right * cos + left * sin
