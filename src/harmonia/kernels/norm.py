"""Root-mean-square norm, alone and with the residual addition before it. Shapes: T tokens, E features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harmonia.kernels import native
from harmonia.kernels.native import Impl, kernel
from harmonia.kernels.native_code import float32, float32s, float64s, int64s, part, share

_FEATURES_PER_THREAD = 32_768


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float, impl: Impl = "auto") -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in fp32. Any number of leading dimensions."""
    if impl == "eager" or (impl == "auto" and not native.usable(x_TE, weight_E)):
        return _rms_norm_eager(x_TE, weight_E, eps)
    x_TE = x_TE.contiguous()
    out_TE = torch.empty_like(x_TE)
    _run(x_TE, 0, weight_E, 0, out_TE, eps)
    return out_TE


def add_rms_norm(
    x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual)."""
    if impl == "eager" or (impl == "auto" and not native.usable(x_TE, residual_TE, weight_E)):
        sum_TE = x_TE + residual_TE
        return _rms_norm_eager(sum_TE, weight_E, eps), sum_TE
    x_TE, residual_TE = x_TE.contiguous(), residual_TE.contiguous()
    out_TE, sum_TE = torch.empty_like(x_TE), torch.empty_like(x_TE)
    _run(x_TE, residual_TE.data_ptr(), weight_E, sum_TE.data_ptr(), out_TE, eps)
    return out_TE, sum_TE


def _rms_norm_eager(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    x32_TE = x_TE.float()
    scale_T1 = torch.rsqrt(x32_TE.square().mean(-1, keepdim=True) + eps)
    return (x32_TE * scale_T1).to(x_TE.dtype) * weight_E


def _run(x_TE: Tensor, residual: int, weight_E: Tensor, total: int, out_TE: Tensor, eps: float) -> None:
    num_features = x_TE.shape[-1]
    rows = x_TE.numel() // num_features
    threads = native.threads_for(x_TE.numel(), _FEATURES_PER_THREAD)
    addresses = (x_TE.data_ptr(), residual, weight_E.data_ptr(), total, out_TE.data_ptr())
    _rms_norm_rows.run(threads, *addresses, rows, num_features, eps)


@kernel("qqqqqqqd")
def _rms_norm_rows(arguments: int, thread: int, num_threads: int) -> None:
    x, residual, weight, total, out, rows, size = int64s(arguments, 7)
    eps = float64s(arguments, 8)[7]
    weight_E = float32s(weight, size)
    first, stop = share(rows, thread, num_threads)
    for row in range(first, stop):
        offset = 4 * row * size
        row_E = float32s(x + offset, size)
        if residual != 0:
            sum_E = float32s(total + offset, size)
            _add(row_E, float32s(residual + offset, size), sum_E)
            row_E = sum_E
        squares = float32(0)
        for e in range(size):
            squares += row_E[e] * row_E[e]
        scale = float32(1.0 / math.sqrt(squares / size + eps))
        out_E = float32s(out + offset, size)
        for e in range(size):
            out_E[e] = row_E[e] * scale * weight_E[e]


@part
def _add(a_E: Tensor, b_E: Tensor, out_E: Tensor) -> None:
    for e in range(len(out_E)):
        out_E[e] = a_E[e] + b_E[e]
