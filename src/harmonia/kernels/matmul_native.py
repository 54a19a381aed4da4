"""Products on the CPU in fp32, for inference: compiled kernels for few tokens, oneDNN for many.

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
from harmonia.kernels.weight import HAS_ONEDNN, PANEL, DenseWeight, Int8Weight, panel_scratch, panels_per_part

_WEIGHTS_PER_THREAD = 32_768
# From here on writing the weights out in fp32 for oneDNN beats converting them inside the product.
_INT8_MAX_TOKENS_IN_PLACE = 96
_DEQUANTISED_BYTES = 8 << 20  # stays in the cache between being written and being read
_BLOCK = 64
_PANELS_MAX_TOKENS = 96  # beyond, oneDNN's own blocking wins
_BF16_PANELS_MAX_TOKENS = 160  # and beyond this even when it must be given fp32 first
_ROW_BLOCK = 16  # one cache line of results


def onednn_linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b in fp32, from any strides at full speed; K may not be 0."""
    y_TN: Tensor = torch.ops.mkldnn._linear_pointwise(x_TK, weight_NK, bias_N, "none", [], "")
    return y_TN


def multiply_dense(x_TK: Tensor, weight: DenseWeight, bias_N: Tensor | None) -> Tensor:
    """x W^T + b: y_TN."""
    if weight.packed is None:
        return onednn_linear(x_TK, weight.weight_NK, bias_N)
    panels_XKP, opaque = weight.packed
    if x_TK.shape[0] <= (_PANELS_MAX_TOKENS if opaque is not None else _BF16_PANELS_MAX_TOKENS):
        return _multiply_panels(x_TK, panels_XKP, bias_N)
    return _multiply_widened(x_TK, panels_XKP, bias_N) if opaque is None else onednn_linear(x_TK, opaque, bias_N)


def multiply_int8(x_TK: Tensor, weight: Int8Weight) -> Tensor:
    """x W^T: y_TN."""
    num_tokens, num_in = x_TK.shape
    num_out = weight.weight_NK.shape[0]
    if num_tokens > _INT8_MAX_TOKENS_IN_PLACE and HAS_ONEDNN:
        parts = ((start, dense_MK, None) for start, dense_MK in dequantised_parts(weight, _DEQUANTISED_BYTES))
        return _side_by_side(x_TK, num_out, parts)
    y_TN = x_TK.new_empty(num_tokens, num_out)
    threads = native.threads_for(num_out * num_in, _WEIGHTS_PER_THREAD)
    addresses = (y_TN.data_ptr(), x_TK.data_ptr(), weight.weight_NK.data_ptr(), weight.scale_N.data_ptr())
    _int8_linear.run(threads, *addresses, num_tokens, num_out, num_in)
    return y_TN


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


def _multiply_widened(x_TK: Tensor, panels_XKP: Tensor, bias_N: Tensor | None) -> Tensor:
    """Through fp32 panels that oneDNN multiplies, some rows of the weight at a time."""
    return _side_by_side(x_TK, panels_XKP.shape[0] * PANEL, _widened_parts(panels_XKP, bias_N))


def _widened_parts(panels_XKP: Tensor, bias_N: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    num_panels, num_in, _ = panels_XKP.shape
    per_part = panels_per_part(num_panels, num_in)
    for start in range(0, num_panels, per_part):
        part_XKP = panels_XKP[start : start + per_part]
        scratch = panel_scratch(part_XKP.shape[0] * PANEL, num_in)
        assert scratch is not None and scratch.opaque is not None
        scratch.panels_XKP.copy_(part_XKP)
        bias_M = None if bias_N is None else bias_N[start * PANEL : (start + per_part) * PANEL]
        yield start * PANEL, scratch.opaque, bias_M


def _side_by_side(x_TK: Tensor, num_out: int, parts: Iterator[tuple[int, Tensor, Tensor | None]]) -> Tensor:
    """Products with row ranges of a weight, each written where it belongs: never all of them twice."""
    y_TN = None
    for start, weight_MK, bias_M in parts:
        part_TM = onednn_linear(x_TK, weight_MK, bias_M)
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
        y_panel = y + 4 * panel * PANEL
        for token in range(num_tokens):
            _begin(bias + 4 * panel * PANEL if bias != 0 else 0, float32s(y_panel + 4 * token * num_out, PANEL))
        for k in range(0, num_in, _BLOCK):
            block, steps = panels + item * PANEL * (panel * num_in + k), min(_BLOCK, num_in - k)
            if item == 2:
                _add_bf16_block(y_panel, x + 4 * k, block, num_tokens, num_out, num_in, steps)
            else:
                _add_block(y_panel, x + 4 * k, block, num_tokens, num_out, num_in, steps)


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


@kernel("qqqqqqq")
def _int8_linear(arguments: int, thread: int, num_threads: int) -> None:
    """Tiles of 4 rows of the weight by 4 tokens: 16 sums stay in registers while each weight is converted once."""
    y, x, weight, scale, num_tokens, num_out, num_in = int64s(arguments, 7)
    scale_N = float32s(scale, num_out)
    first, stop = share((num_out + _ROW_BLOCK - 1) // _ROW_BLOCK, thread, num_threads)
    for block in range(first, stop):
        row, last_row = _ROW_BLOCK * block, min(num_out, _ROW_BLOCK * (block + 1))
        if block + 1 < stop:
            prefetch(weight + last_row * num_in, _ROW_BLOCK * num_in)
        for token in range(0, num_tokens, 4):  # inside the block, so that a line of y is written in one go
            x_tile = x + 4 * token * num_in
            for tile_row in range(row, last_row - 3, 4):
                y_tile, weight_tile = y + 4 * (token * num_out + tile_row), weight + tile_row * num_in
                scale_4 = float32s(scale + 4 * tile_row, 4)
                if token == num_tokens - 1:
                    _four_rows(y_tile, x_tile, weight_tile, scale_4, num_in)
                else:
                    _tile(y_tile, x_tile, weight_tile, scale_4, min(4, num_tokens - token), num_out, num_in)
        for single in range(last_row - (last_row - row) % 4, last_row):
            _one_row(y + 4 * single, x, weight + single * num_in, scale_N[single], num_tokens, num_out, num_in)


@part
def _tile(y: int, x: int, weight: int, scale_4: Any, tokens: int, num_out: int, num_in: int) -> None:
    """4 rows by 2 to 4 tokens; places beyond the last token repeat it."""
    second, third, fourth = 1, min(2, tokens - 1), min(3, tokens - 1)
    w0, w1 = int8s(weight, num_in), int8s(weight + num_in, num_in)
    w2, w3 = int8s(weight + 2 * num_in, num_in), int8s(weight + 3 * num_in, num_in)
    x0, x1 = float32s(x, num_in), float32s(x + 4 * second * num_in, num_in)
    x2, x3 = float32s(x + 4 * third * num_in, num_in), float32s(x + 4 * fourth * num_in, num_in)
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = float32(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = float32(0)
    for k in range(num_in):
        a0, a1, a2, a3 = float32(w0[k]), float32(w1[k]), float32(w2[k]), float32(w3[k])
        b0, b1, b2, b3 = x0[k], x1[k], x2[k], x3[k]
        s00, s01, s02, s03 = s00 + b0 * a0, s01 + b0 * a1, s02 + b0 * a2, s03 + b0 * a3
        s10, s11, s12, s13 = s10 + b1 * a0, s11 + b1 * a1, s12 + b1 * a2, s13 + b1 * a3
        s20, s21, s22, s23 = s20 + b2 * a0, s21 + b2 * a1, s22 + b2 * a2, s23 + b2 * a3
        s30, s31, s32, s33 = s30 + b3 * a0, s31 + b3 * a1, s32 + b3 * a2, s33 + b3 * a3
    _store(y, s00, s01, s02, s03, scale_4)
    _store(y + 4 * second * num_out, s10, s11, s12, s13, scale_4)
    _store(y + 4 * third * num_out, s20, s21, s22, s23, scale_4)
    _store(y + 4 * fourth * num_out, s30, s31, s32, s33, scale_4)


@part
def _four_rows(y: int, x: int, weight: int, scale_4: Any, num_in: int) -> None:
    w0, w1 = int8s(weight, num_in), int8s(weight + num_in, num_in)
    w2, w3 = int8s(weight + 2 * num_in, num_in), int8s(weight + 3 * num_in, num_in)
    x_K = float32s(x, num_in)
    s0 = s1 = s2 = s3 = float32(0)
    for k in range(num_in):
        b = x_K[k]
        s0 += b * float32(w0[k])
        s1 += b * float32(w1[k])
        s2 += b * float32(w2[k])
        s3 += b * float32(w3[k])
    _store(y, s0, s1, s2, s3, scale_4)


@part
def _one_row(y: int, x: int, weight: int, scale: float, num_tokens: int, num_out: int, num_in: int) -> None:
    weight_K = int8s(weight, num_in)
    for token in range(num_tokens):
        x_K = float32s(x + 4 * token * num_in, num_in)
        total = float32(0)
        for k in range(num_in):
            total += x_K[k] * float32(weight_K[k])
        float32s(y + 4 * token * num_out, 1)[0] = total * scale


@part
def _store(y: int, s0: float, s1: float, s2: float, s3: float, scale_4: Any) -> None:
    y_4 = float32s(y, 4)
    y_4[0] = s0 * scale_4[0]
    y_4[1] = s1 * scale_4[1]
    y_4[2] = s2 * scale_4[2]
    y_4[3] = s3 * scale_4[3]
