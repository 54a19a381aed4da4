"""Rounding to e4m3 on a GPU: activations token by token, and the rows of a weight.

Shapes: T tokens, K input features, B scales of a token, M rows of a weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_MOST_IN_PROGRAM = 1 << 13
_LARGEST = tl.constexpr(448.0)
_LEAST = tl.constexpr(1e-12)


def quantise_tokens(x_TK: Tensor, columns: int, *, overlap: bool = False) -> tuple[Tensor, Tensor]:
    """(e4m3 values_TK, fp32 scale_TB): so many neighbouring features of a token share a scale."""
    num_tokens, num_in = x_TK.shape
    num_scales = triton.cdiv(num_in, columns)
    values_TK = torch.empty(num_tokens, num_in, dtype=torch.float8_e4m3fn, device=x_TK.device)
    scale_TB = torch.empty(num_tokens, num_scales, dtype=torch.float32, device=x_TK.device)
    quantise_into(x_TK, values_TK, scale_TB, columns, overlap=overlap)
    return values_TK, scale_TB


def quantise_into(x_TK: Tensor, values_TK: Tensor, scale_TB: Tensor, columns: int, *, overlap: bool = False) -> None:
    """Write what `quantise_tokens` returns; values of a wider type are scaled and not rounded."""
    num_tokens, num_in = x_TK.shape
    if x_TK.numel() == 0:
        return
    x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
    width = triton.next_power_of_2(columns)
    num_scales = scale_TB.shape[1]
    height = min(triton.next_power_of_2(num_scales), max(1, _MOST_IN_PROGRAM // width))
    _quantise[(num_tokens, triton.cdiv(num_scales, height))](
        *(x_TK, values_TK, scale_TB, num_in, num_scales, columns, x_TK.stride(0)),
        *(height, width, overlap),
        num_warps=min(16, max(1, height * width // 1024)),
        launch_pdl=overlap,
    )


def fit_rows(w_MK: Tensor, values_MK: Tensor, scale_M1: Tensor, num_steps: int, ratio: float) -> None:
    """Write the rows of a weight in e4m3 with the scales that `fp8_weight.fit` chooses from so many."""
    num_rows, num_in = w_MK.shape
    if w_MK.numel() == 0:
        return
    w_MK = w_MK if w_MK.stride(1) == 1 else w_MK.contiguous()
    width = triton.next_power_of_2(num_in)
    _fit[(num_rows,)](
        *(w_MK, values_MK, scale_M1, num_in, w_MK.stride(0), width, num_steps, ratio),
        num_warps=min(16, max(1, width // 512)),
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
    OVERLAP: tl.constexpr,
):
    """Some scales of one token, a row of the tile each."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * HEIGHT + tl.arange(0, HEIGHT)
    in_group = tl.arange(0, WIDTH)
    k = group[:, None] * columns + in_group[None, :]
    mask = (in_group < columns)[None, :] & (k < num_in)
    x = tl.load(x_ptr + token * x_stride + k, mask, 0.0).to(tl.float32)
    inverse, scale = token_scales(tl.max(tl.abs(x), axis=1))
    tl.store(scale_ptr + token * num_scales + group, scale, group < num_scales)
    values = scaled(x, inverse[:, None])
    tl.store(values_ptr + token * num_in + k, values.to(values_ptr.dtype.element_ty), mask)


@triton.jit
def _fit(w_ptr, values_ptr, scale_ptr, num_in, w_stride, WIDTH: tl.constexpr, STEPS: tl.constexpr, RATIO: tl.constexpr):
    """One row: each scale from the least on, up to less than twice that, and the one whose errors^4 are least."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    w = tl.load(w_ptr + row * w_stride + k, k < num_in, 0.0).to(tl.float32)
    inverse, smallest = token_scales(tl.max(tl.abs(w), axis=0))
    best = smallest
    scale = smallest
    least = _error(w, scaled(w, inverse).to(tl.float8e4nv), smallest)
    for _ in range(1, STEPS):
        scale = scale * RATIO
        error = _error(w, scaled(w, tl.div_rn(1.0, scale)).to(tl.float8e4nv), scale)
        best = tl.where(error < least, scale, best)
        least = tl.minimum(error, least)
    inverse = tl.where(best == smallest, inverse, tl.div_rn(1.0, best))
    tl.store(scale_ptr + row, best)
    tl.store(values_ptr + row * num_in + k, scaled(w, inverse).to(tl.float8e4nv), k < num_in)


@triton.jit
def _error(w, values, scale):
    difference = values.to(tl.float32) * scale - w
    difference = difference * difference
    return tl.sum(difference * difference, axis=0)


@triton.jit
def token_scales(largest):
    """(what values are multiplied by, what products are multiplied by), rounded as torch divides."""
    largest = tl.maximum(largest, _LEAST)
    return tl.div_rn(448.0, largest), tl.div_rn(largest, 448.0)


@triton.jit
def scaled(x, inverse):
    return tl.clamp(x * inverse, -_LARGEST, _LARGEST, propagate_nan=tl.PropagateNan.ALL)
