"""Root-mean-square norm on a GPU: a row is read once, kept in registers and written once.

Rows that are short share a program. Gradients of the weight are summed by a fixed number of programs, each over its own
rows, and then over these programs, always in the same order.

Shapes: T tokens, E features, W programs; in kernels R rows of a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_FEATURES_PER_PROGRAM = 1024
_SUMMING_PROGRAMS = 256
_FEATURES_PER_THREAD = 16
"""Whatever the number of rows, so that each sums in the same order in every batch."""


def rms_norm_triton(
    x_TE: Tensor, residual_TE: Tensor | None, weight_E: Tensor, eps: float
) -> tuple[Tensor, Tensor | None]:
    """(norm(x + residual), x + residual); no sum without a residual."""
    x_TE, x_stride = _with_rows(x_TE)
    out_TE = torch.empty(x_TE.shape, dtype=x_TE.dtype, device=x_TE.device)
    sum_TE, residual_stride = None, 0
    if residual_TE is not None:
        residual_TE, residual_stride = _with_rows(residual_TE)
        sum_TE = torch.empty_like(out_TE)
    num_features = x_TE.shape[-1]
    num_rows = x_TE.numel() // num_features
    if num_rows:
        block, rows, warps = _tile(num_features)
        _norm_rows[(triton.cdiv(num_rows, rows),)](
            *(x_TE, residual_TE, weight_E, out_TE, sum_TE, num_rows, x_stride, residual_stride, eps),
            *(num_features, rows, block, residual_TE is not None),
            num_warps=warps,
        )
    return out_TE, sum_TE


def rms_norm_backward_triton(
    x_TE: Tensor, weight_E: Tensor, d_out_TE: Tensor, d_sum_TE: Tensor | None, eps: float, train_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of what was normalised, `d_sum_TE` added, and of the weight in fp32."""
    x_TE, d_out_TE = x_TE.contiguous(), d_out_TE.contiguous()
    d_sum_TE = None if d_sum_TE is None else d_sum_TE.contiguous()
    d_x_TE = torch.empty_like(x_TE)
    num_features = x_TE.shape[-1]
    num_rows = x_TE.numel() // num_features
    block, rows, warps = _tile(num_features)
    programs = triton.cdiv(num_rows, rows)
    if train_weight:
        programs = min(programs, _SUMMING_PROGRAMS)
    sums_WE = x_TE.new_empty(programs, num_features, dtype=torch.float32) if train_weight else None
    if num_rows:
        _norm_rows_backward[(programs,)](
            *(x_TE, weight_E, d_out_TE, d_sum_TE, d_x_TE, sums_WE, num_rows, eps, num_features, rows, block),
            *(d_sum_TE is not None, train_weight),
            num_warps=warps,
        )
    return d_x_TE, None if sums_WE is None else sums_WE.sum(0)


def _with_rows(x_TE: Tensor) -> tuple[Tensor, int]:
    """The same with features side by side, and the distance between rows."""
    if x_TE.dim() != 2 or x_TE.stride(1) != 1:
        x_TE = x_TE.contiguous()
        return x_TE, x_TE.shape[-1]
    return x_TE, x_TE.stride(0)


def _tile(num_features: int) -> tuple[int, int, int]:
    """(features of a row as a power of two, rows of a program, warps)."""
    block = triton.next_power_of_2(num_features)
    rows = max(1, _FEATURES_PER_PROGRAM // block)
    return block, rows, min(max(block * rows // (32 * _FEATURES_PER_THREAD), 1), 16)


@triton.jit(do_not_specialize=["num_rows"])
def _norm_rows(
    x, residual, weight, out, total, num_rows, x_stride, residual_stride, eps,
    SIZE: tl.constexpr, R: tl.constexpr, E: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    row_R1 = (tl.program_id(0).to(tl.int64) * R + tl.arange(0, R))[:, None]
    feature_1E = tl.arange(0, E)[None, :]
    mask_RE = (row_R1 < num_rows) & (feature_1E < SIZE)
    weight_1E = tl.load(weight + feature_1E, mask=feature_1E < SIZE, other=0.0).to(tl.float32)
    x_RE = tl.load(x + row_R1 * x_stride + feature_1E, mask=mask_RE, other=0.0)
    if ADDS:
        other_RE = tl.load(residual + row_R1 * residual_stride + feature_1E, mask=mask_RE, other=0.0)
        # Rounded before it is normalised, since this is what is kept.
        x_RE = (x_RE.to(tl.float32) + other_RE.to(tl.float32)).to(x_RE.dtype)
        tl.store(total + row_R1 * SIZE + feature_1E, x_RE, mask=mask_RE)
    wide_RE = x_RE.to(tl.float32)
    scale_R1 = (1.0 / tl.sqrt(tl.sum(wide_RE * wide_RE, 1) / SIZE + eps))[:, None]
    tl.store(out + row_R1 * SIZE + feature_1E, wide_RE * scale_R1 * weight_1E, mask=mask_RE)


@triton.jit(do_not_specialize=["num_rows"])
def _norm_rows_backward(
    x, weight, d_out, d_sum, d_x, sums, num_rows, eps,
    SIZE: tl.constexpr, R: tl.constexpr, E: tl.constexpr, ADDS: tl.constexpr, TRAIN_WEIGHT: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * R
    feature_1E = tl.arange(0, E)[None, :]
    weight_1E = tl.load(weight + feature_1E, mask=feature_1E < SIZE, other=0.0).to(tl.float32)
    sum_RE = tl.zeros([R, E], tl.float32)
    # Without the weight's gradient there are as many programs as groups of rows, and this runs once.
    for start in range(first, num_rows, tl.num_programs(0) * R):
        row_R1 = (start + tl.arange(0, R))[:, None]
        mask_RE = (row_R1 < num_rows) & (feature_1E < SIZE)
        places_RE = row_R1.to(tl.int64) * SIZE + feature_1E
        x_RE = tl.load(x + places_RE, mask=mask_RE, other=0.0).to(tl.float32)
        d_out_RE = tl.load(d_out + places_RE, mask=mask_RE, other=0.0).to(tl.float32)
        scale_R1 = (1.0 / tl.sqrt(tl.sum(x_RE * x_RE, 1) / SIZE + eps))[:, None]
        unit_RE = x_RE * scale_R1
        d_unit_RE = d_out_RE * weight_1E
        mean_R1 = (tl.sum(d_unit_RE * unit_RE, 1) / SIZE)[:, None]
        d_x_RE = scale_R1 * (d_unit_RE - unit_RE * mean_R1)
        if ADDS:
            d_x_RE += tl.load(d_sum + places_RE, mask=mask_RE, other=0.0).to(tl.float32)
        tl.store(d_x + places_RE, d_x_RE, mask=mask_RE)
        if TRAIN_WEIGHT:
            sum_RE += d_out_RE * unit_RE
    if TRAIN_WEIGHT:
        into = sums + tl.program_id(0).to(tl.int64) * SIZE + feature_1E
        tl.store(into, tl.sum(sum_RE, 0)[None, :], mask=feature_1E < SIZE)
