"""Products on the CPU in fp32, compiled.

Every output is one sum whose order depends on the form of the weight only: feature by feature in panels, in 16 lanes in
rows. So a token's results are the same bits in every batch. Where a kernel for rows is slower than oneDNN, whose order
depends on the number of tokens, only invariant weights insist on it.

Shapes: T tokens, K input features, N output features, M rows of a part, X panels of P output features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harmonia.kernels import native
from harmonia.kernels.native import kernel
from harmonia.kernels.native_code import (
    add_product_1_row_64_bf16_columns_2_lines,
    add_product_1_row_64_columns_4_lines,
    add_product_4_rows_64_bf16_columns_1_line,
    add_product_4_rows_64_bf16_columns_2_lines,
    add_product_4_rows_64_columns_1_line,
    add_product_4_rows_64_columns_2_lines,
    add_product_4_rows_64_columns_4_lines,
    float32,
    float32s,
    int8s,
    int64s,
    part,
    prefetch,
    share,
)
from harmonia.kernels.native_dots import dots_of_tile, int8_dots_of_tile
from harmonia.kernels.weight import HAS_ONEDNN, PANEL, DenseWeight, Int8Weight

_WEIGHTS_PER_THREAD = 32_768
# From here on writing the weights out in fp32 for oneDNN beats converting them inside the product.
_INT8_MAX_TOKENS_IN_PLACE = 96
_DEQUANTISED_BYTES = 8 << 20  # stays in the cache between being written and being read
_BLOCK = 64
_TOKEN_BLOCK = 128  # tokens whose sums of a panel stay in the cache
_MIN_TOKENS_TO_WIDEN = 32  # from here on rows of int8 are written out in fp32 once
_ROWS_OF_UNIT = 16  # one cache line of results
_ROWS_OF_LARGE_UNIT = 64
_LARGE_UNIT_BYTES = 512 << 10  # of rows in fp32, which many tokens read from the second-level cache


def onednn_linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b in fp32, from any strides at full speed; K may not be 0."""
    y_TN: Tensor = torch.ops.mkldnn._linear_pointwise(x_TK, weight_NK, bias_N, "none", [], "")
    return y_TN


def multiply_dense(x_TK: Tensor, weight: DenseWeight, bias_N: Tensor | None) -> Tensor:
    """x W^T + b: y_TN."""
    if weight.panels_XKP is not None:
        return _multiply_panels(x_TK, weight.panels_XKP, bias_N)
    if weight.invariant:
        return _multiply_rows(x_TK, weight.weight_NK, bias_N)
    return onednn_linear(x_TK, weight.weight_NK, bias_N)


def multiply_int8(x_TK: Tensor, weight: Int8Weight) -> Tensor:
    """x W^T: y_TN."""
    if x_TK.shape[0] > _INT8_MAX_TOKENS_IN_PLACE and HAS_ONEDNN and not weight.invariant:
        return _multiply_dequantised(x_TK, weight)
    return _multiply_rows(x_TK, weight.weight_NK, scale_N=weight.scale_N)


def dequantised_parts(weight: Int8Weight, num_bytes: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows in fp32) through all rows, so many bytes at a time, in one and the same memory."""
    num_out, num_in = weight.weight_NK.shape
    rows_per_part = min(num_out, max(PANEL, num_bytes // (4 * num_in)))
    dense_MK = torch.empty(rows_per_part, num_in)
    threads = native.threads_for(dense_MK.numel(), _WEIGHTS_PER_THREAD)
    for start in range(0, num_out, rows_per_part):
        rows = min(rows_per_part, num_out - start)
        weight_MK, scale_M = weight.weight_NK[start : start + rows], weight.scale_N[start : start + rows]
        _dequantise.run(threads, weight_MK.data_ptr(), scale_M.data_ptr(), dense_MK.data_ptr(), rows, num_in)
        yield start, dense_MK[:rows]


def _multiply_dequantised(x_TK: Tensor, weight: Int8Weight) -> Tensor:
    """Some rows of the weight at a time, each written where it belongs: never all of them twice."""
    num_out = weight.weight_NK.shape[0]
    y_TN = None
    for start, dense_MK in dequantised_parts(weight, _DEQUANTISED_BYTES):
        part_TM = onednn_linear(x_TK, dense_MK)
        if part_TM.shape[1] == num_out:
            return part_TM
        y_TN = x_TK.new_empty(x_TK.shape[0], num_out) if y_TN is None else y_TN
        y_TN[:, start : start + part_TM.shape[1]] = part_TM
    assert y_TN is not None
    return y_TN


def _multiply_panels(x_TK: Tensor, panels_XKP: Tensor, bias_N: Tensor | None) -> Tensor:
    num_tokens, num_in = x_TK.shape
    num_panels = panels_XKP.shape[0]
    rows = num_tokens if num_tokens <= 1 else -(-num_tokens // 4) * 4
    if rows != num_tokens:
        x_TK = F.pad(x_TK, (0, 0, 0, rows - num_tokens))
    y_TN = x_TK.new_empty(rows, num_panels * PANEL)
    threads = native.threads_for(panels_XKP.numel(), _WEIGHTS_PER_THREAD)
    bias = 0 if bias_N is None else bias_N.data_ptr()
    addresses = y_TN.data_ptr(), x_TK.data_ptr(), panels_XKP.data_ptr(), bias
    _panel_linear.run(threads, *addresses, rows, num_panels, num_in, panels_XKP.itemsize)
    return y_TN[:num_tokens]


def _multiply_rows(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, scale_N: Tensor | None = None
) -> Tensor:
    """With a weight in rows, of fp32 or int8 with a scale each; K may be 0, strides of rows may be any."""
    num_tokens, num_in = x_TK.shape
    num_out = weight_NK.shape[0]
    y_TN = x_TK.new_empty(num_tokens, num_out)
    threads = native.threads_for(num_out * num_in, _WEIGHTS_PER_THREAD)
    is_large = num_tokens >= _MIN_TOKENS_TO_WIDEN and 4 * _ROWS_OF_LARGE_UNIT * num_in <= _LARGE_UNIT_BYTES
    rows_of_unit = _ROWS_OF_LARGE_UNIT if is_large else _ROWS_OF_UNIT
    widens = weight_NK.dtype is torch.int8 and num_tokens >= _MIN_TOKENS_TO_WIDEN
    wide = torch.empty(threads, rows_of_unit * num_in if widens else 0)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (y_TN, x_TK, weight_NK, bias_N, scale_N)]
    strides = 4 * x_TK.stride(0), weight_NK.itemsize * weight_NK.stride(0)
    sizes = num_tokens, num_out, num_in, rows_of_unit, weight_NK.itemsize
    _row_linear.run(threads, *addresses, wide.data_ptr() if widens else 0, *strides, *sizes)
    return y_TN


@kernel("qqqqqqqq")
def _panel_linear(arguments: int, thread: int, num_threads: int) -> None:
    """Blocks of 64 input features of a panel with 4 tokens at a time.

    While a block is used the next one is fetched, a part with each 4 tokens: computing and waiting for memory happen at
    the same time, as they do not in oneDNN or with a plain prefetch (fp32, 32 tokens: 22 ms instead of 29 and 26).
    """
    y, x, panels, bias, num_tokens, num_panels, num_in, item = int64s(arguments, 8)
    num_out = num_panels * PANEL
    first, stop = share(num_panels, thread, num_threads)
    for panel in range(first, stop):
        for start in range(0, num_tokens, _TOKEN_BLOCK):
            tokens = min(_TOKEN_BLOCK, num_tokens - start)
            x_block, y_block = x + 4 * start * num_in, y + 4 * (start * num_out + panel * PANEL)
            for token in range(tokens):
                _begin(bias + 4 * panel * PANEL if bias != 0 else 0, float32s(y_block + 4 * token * num_out, PANEL))
            for k in range(0, num_in, _BLOCK):
                block, steps = panels + item * PANEL * (panel * num_in + k), min(_BLOCK, num_in - k)
                if item == 4:
                    _add_block(y_block, x_block + 4 * k, block, tokens, num_out, num_in, steps)
                else:
                    _add_bf16_block(y_block, x_block + 4 * k, block, tokens, num_out, num_in, steps)


@part
def _begin(bias: int, y_P: Any) -> None:
    for p in range(PANEL):
        y_P[p] = 0
    if bias != 0:
        bias_P = float32s(bias, PANEL)
        for p in range(PANEL):
            y_P[p] = bias_P[p]


@part
def _add_block(y: int, x: int, block: int, num_tokens: int, num_out: int, num_in: int, steps: int) -> None:
    ahead, size = block + 4 * PANEL * _BLOCK, 4 * PANEL * steps
    x_stride, y_stride, stride = 4 * num_in, 4 * num_out, 4 * PANEL
    if num_tokens == 1:
        add_product_1_row_64_columns_4_lines(x, x_stride, block, stride, y, y_stride, steps, ahead)
    elif num_tokens == 4:
        add_product_4_rows_64_columns_4_lines(x, x_stride, block, stride, y, y_stride, steps, ahead)
    elif num_tokens < 16:
        for token in range(0, num_tokens, 4):
            fetched = ahead + token // 4 * size // 2 if token < 8 else block  # what is there costs nothing
            x_rows, y_rows = x + token * x_stride, y + token * y_stride
            add_product_4_rows_64_columns_2_lines(x_rows, x_stride, block, stride, y_rows, y_stride, steps, fetched)
    else:
        for token in range(0, num_tokens, 4):
            fetched = ahead + token // 4 * size // 4 if token < 16 else block
            x_rows, y_rows = x + token * x_stride, y + token * y_stride
            add_product_4_rows_64_columns_1_line(x_rows, x_stride, block, stride, y_rows, y_stride, steps, fetched)


@part
def _add_bf16_block(y: int, x: int, block: int, num_tokens: int, num_out: int, num_in: int, steps: int) -> None:
    ahead, size = block + 2 * PANEL * _BLOCK, 2 * PANEL * steps
    x_stride, y_stride, stride = 4 * num_in, 4 * num_out, 2 * PANEL
    if num_tokens == 1:
        add_product_1_row_64_bf16_columns_2_lines(x, x_stride, block, stride, y, y_stride, steps, ahead)
    elif num_tokens == 4:
        add_product_4_rows_64_bf16_columns_2_lines(x, x_stride, block, stride, y, y_stride, steps, ahead)
    else:
        for token in range(0, num_tokens, 4):
            fetched = ahead + token // 4 * size // 2 if token < 8 else block
            x_rows, y_rows = x + token * x_stride, y + token * y_stride
            add_product_4_rows_64_bf16_columns_1_line(x_rows, x_stride, block, stride, y_rows, y_stride, steps, fetched)


@kernel("qqqqq")
def _dequantise(arguments: int, thread: int, num_threads: int) -> None:
    weight, scale, dense, rows, size = int64s(arguments, 5)
    scale_N = float32s(scale, rows)
    first, stop = share(rows, thread, num_threads)
    for row in range(first, stop):
        weight_K, dense_K = int8s(weight + row * size, size), float32s(dense + 4 * row * size, size)
        factor = scale_N[row]
        for k in range(size):
            dense_K[k] = float32(weight_K[k]) * factor


@kernel("qqqqqqqqqqqqq")
def _row_linear(arguments: int, thread: int, num_threads: int) -> None:
    """Tiles of 4 rows of the weight by 4 tokens: 16 sums stay in registers while each weight is converted once."""
    y, x, weight, bias, scale, wide, x_stride, stride, num_tokens, num_out, num_in, unit, item = int64s(arguments, 13)
    wide += 4 * unit * num_in * thread if wide != 0 else 0
    first, stop = share((num_out + unit - 1) // unit, thread, num_threads)
    for row in range(unit * first, min(unit * stop, num_out), unit):
        rows, weight_rows, row_stride = min(unit, num_out - row), weight + row * stride, stride
        if row + unit < min(unit * stop, num_out):
            prefetch(weight_rows + unit * stride, min(unit, num_out - row - unit) * stride)
        if wide != 0:
            for i in range(rows):
                _convert(int8s(weight_rows + i * stride, num_in), float32s(wide + 4 * i * num_in, num_in))
            weight_rows, row_stride = wide, 4 * num_in
        for token in range(0, num_tokens, 4):  # inside the unit, so that a line of y is written in one go
            tokens, x_rows, y_rows = min(4, num_tokens - token), x + token * x_stride, y + 4 * (token * num_out + row)
            if item == 1 and wide == 0:
                int8_dots_of_tile(x_rows, x_stride, weight_rows, row_stride, y_rows, 4 * num_out, num_in, tokens, rows)
            else:
                dots_of_tile(x_rows, x_stride, weight_rows, row_stride, y_rows, 4 * num_out, num_in, tokens, rows)
            for i in range(tokens):
                y_M = float32s(y_rows + 4 * i * num_out, rows)
                if scale != 0:
                    _multiply(y_M, float32s(scale + 4 * row, rows))
                if bias != 0:
                    _add(y_M, float32s(bias + 4 * row, rows))


@part
def _convert(narrow_K: Any, wide_K: Any) -> None:
    for k in range(len(wide_K)):
        wide_K[k] = float32(narrow_K[k])


@part
def _multiply(y_M: Any, scale_M: Any) -> None:
    for m in range(len(y_M)):
        y_M[m] *= scale_M[m]


@part
def _add(y_M: Any, bias_M: Any) -> None:
    for m in range(len(y_M)):
        y_M[m] += bias_M[m]
