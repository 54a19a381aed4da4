"""Rounding to e4m3 on a GPU: activations token by token, and the rows of a weight.

Shapes: T tokens, K input features, B scales of a token, M rows of a weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_IN_PROGRAM = 1 << 13
_LARGEST = tl.constexpr(448.0)
_LEAST = tl.constexpr(1e-12)


def quantise_tokens(x_TK: Tensor, columns: int, num_steps: int) -> tuple[Tensor, Tensor]:
    """(e4m3 values_TK, fp32 scale_TB) as `fp8_weight.quantise`; so many features of a token share a scale."""
    num_tokens, num_in = x_TK.shape
    values_TK = torch.empty(num_tokens, num_in, dtype=torch.float8_e4m3fn, device=x_TK.device)
    scale_TB = torch.empty(num_tokens, triton.cdiv(num_in, columns), dtype=torch.float32, device=x_TK.device)
    quantise_into(x_TK, values_TK, scale_TB, columns, num_steps)
    return values_TK, scale_TB


def quantise_into(x_TK: Tensor, values_TK: Tensor, scale_TB: Tensor, columns: int, num_steps: int) -> None:
    """Write what `quantise_tokens` returns; of tokens or rows of a weight. Values of a wider type are not rounded."""
    num_tokens, num_in = x_TK.shape
    if x_TK.numel() == 0:
        return
    x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
    width = triton.next_power_of_2(columns)
    num_scales = scale_TB.shape[1]
    height = min(triton.next_power_of_2(num_scales), max(1, _MOST_IN_PROGRAM // width))
    _quantise[(num_tokens, triton.cdiv(num_scales, height))](
        *(x_TK, values_TK, scale_TB, num_in, num_scales, columns, x_TK.stride(0)),
        *(height, width, num_steps, 2 ** (1 / num_steps), 2 ** (-1 / num_steps), 2 ** (4 / num_steps)),
        num_warps=min(16, max(1, height * width // 512)),
    )


@triton.jit
def _quantise(
    x_ptr,
    values_ptr,
    scale_ptr,
    num_in,
    num_scales,
    columns,
    x_stride,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    RATIO: tl.constexpr,
    INVERSE_RATIO: tl.constexpr,
    ERROR_RATIO: tl.constexpr,
):
    """Some scales of one token, a row of the tile each."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * HEIGHT + tl.arange(0, HEIGHT)
    in_group = tl.arange(0, WIDTH)
    k = group[:, None] * columns + in_group[None, :]
    mask = (in_group < columns)[None, :] & (k < num_in)
    x = tl.load(x_ptr + token * x_stride + k, mask, 0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(x), axis=1), _LEAST)
    inverse = tl.div_rn(448.0, largest)
    scale = tl.div_rn(largest, 448.0)
    best = scale
    best_inverse = inverse
    if STEPS > 1:
        least = _error(_scaled(x, inverse))
        unit = 1.0
        for _ in tl.static_range(1, STEPS):
            inverse *= INVERSE_RATIO
            scale *= RATIO
            unit *= ERROR_RATIO
            error = _error(_scaled(x, inverse)) * unit
            is_better = error < least
            best = tl.where(is_better, scale, best)
            best_inverse = tl.where(is_better, inverse, best_inverse)
            least = tl.minimum(error, least)
    tl.store(scale_ptr + token * num_scales + group, best, group < num_scales)
    tl.store(values_ptr + token * num_in + k, _scaled(x, best_inverse).to(values_ptr.dtype.element_ty), mask)


@triton.jit
def _scaled(x, inverse):
    return tl.clamp(x * inverse[:, None], -_LARGEST, _LARGEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _error(scaled):
    """The sum of fourth powers of what rounding changes."""
    difference = scaled - scaled.to(tl.float8e4nv).to(tl.float32)
    difference *= difference
    return tl.sum(difference * difference, axis=1)
