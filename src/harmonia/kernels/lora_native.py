"""Low-rank additions on the CPU in fp32, compiled: a token's result is the same bits whatever else is in the batch.

Shapes: t tokens of a segment, K input features, M output features of a part, r rank rows of an adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harmonia.kernels import native
from harmonia.kernels.native import kernel
from harmonia.kernels.native_code import (
    add_product_1_row_16_columns,
    add_product_1_row_64_columns,
    add_product_4_rows_16_columns,
    add_product_4_rows_64_columns,
    float32,
    float32s,
    float64s,
    fused,
    int64s,
    part,
    share,
)
from harmonia.kernels.native_dots import dots_of_tile

_PRODUCTS_PER_THREAD = 32_768
_GROUP = 4  # tokens that share what is loaded of the weights


def add_low_rank_native(y_tM: Tensor, x_tK: Tensor, a_rK: Tensor, b_rM: Tensor, scale: float) -> None:
    """y += scale * (x A^T) B, in place; rows may lie apart, the numbers of a row may not."""
    assert all(matrix.stride(1) == 1 or matrix.shape[1] <= 1 for matrix in (y_tM, x_tK, a_rK, b_rM))
    tokens, num_in = x_tK.shape
    rank, size = b_rM.shape
    threads = native.threads_for(tokens * rank * (num_in + size), _PRODUCTS_PER_THREAD)
    low = torch.empty(threads, _GROUP * rank)
    places = [number for matrix in (y_tM, x_tK, a_rK, b_rM) for number in (matrix.data_ptr(), 4 * matrix.stride(0))]
    _add_low_rank.run(threads, *places, low.data_ptr(), tokens, num_in, rank, size, scale)


@kernel("qqqqqqqqqqqqqd")
def _add_low_rank(arguments: int, thread: int, num_threads: int) -> None:
    """4 tokens at a time: down to the rank, scaled, and up again."""
    y, y_stride, x, x_stride, a, a_stride, b, b_stride, low, tokens, num_in, rank, size = int64s(arguments, 13)
    scale = float32(float64s(arguments, 14)[13])
    low += 4 * _GROUP * rank * thread
    low_stride = 4 * rank
    first, stop = share((tokens + _GROUP - 1) // _GROUP, thread, num_threads)
    for start in range(_GROUP * first, min(_GROUP * stop, tokens), _GROUP):
        count = min(_GROUP, tokens - start)
        dots_of_tile(x + start * x_stride, x_stride, a, a_stride, low, low_stride, num_in, count, rank)
        low_r = float32s(low, count * rank)
        for i in range(count * rank):
            low_r[i] *= scale
        if count == _GROUP:
            _up_4_rows(y + start * y_stride, y_stride, low, low_stride, b, b_stride, rank, size)
        else:
            for token in range(count):
                _up_1_row(y + (start + token) * y_stride, low + token * low_stride, b, b_stride, rank, size)


@part
def _up_4_rows(y: int, y_stride: int, low: int, low_stride: int, b: int, b_stride: int, rank: int, size: int) -> None:
    wide, whole = size // 64 * 64, size // 16 * 16
    for column in range(0, wide, 64):
        add_product_4_rows_64_columns(low, low_stride, b + 4 * column, b_stride, y + 4 * column, y_stride, rank, 0)
    for column in range(wide, whole, 16):
        add_product_4_rows_16_columns(low, low_stride, b + 4 * column, b_stride, y + 4 * column, y_stride, rank, 0)
    for token in range(_GROUP):
        _up_last_columns(y + token * y_stride, low + token * low_stride, b, b_stride, rank, whole, size)


@part
def _up_1_row(y: int, low: int, b: int, b_stride: int, rank: int, size: int) -> None:
    wide, whole = size // 64 * 64, size // 16 * 16
    for column in range(0, wide, 64):
        add_product_1_row_64_columns(low, 0, b + 4 * column, b_stride, y + 4 * column, 0, rank, 0)
    for column in range(wide, whole, 16):
        add_product_1_row_16_columns(low, 0, b + 4 * column, b_stride, y + 4 * column, 0, rank, 0)
    _up_last_columns(y, low, b, b_stride, rank, whole, size)


@part
def _up_last_columns(y: int, low: int, b: int, b_stride: int, rank: int, first: int, size: int) -> None:
    y_M, low_r = float32s(y, size), float32s(low, rank)
    for r in range(rank):
        b_M: Any = float32s(b + r * b_stride, size)
        for m in range(first, size):
            y_M[m] = fused(low_r[r], b_M[m], y_M[m])
