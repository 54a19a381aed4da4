"""Gradients of the attention of packed sequences on the CPU, compiled, from the kept softmax denominators.

Shapes: T tokens of the pack, S sequences, H query heads, G key/value heads, D head size, R queries of a block, C keys
of a tile, P threads, N numbers.

The work is cut into items: one query head of one sequence. An item walks over blocks of 64 queries and, for each, over
tiles of 64 keys. Scores are kept transposed, keys by queries: then every product has one factor that lies in memory as
it is needed, and the other is transposed once per block or tile instead of once per pair of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from harmonia.kernels import native
from harmonia.kernels.native import kernel
from harmonia.kernels.native_code import (
    add_product_4_rows_16_columns,
    add_product_4_rows_64_columns,
    exp,
    float32,
    float32s,
    float64s,
    int64s,
    part,
)

_TILE = 64
_ROW = 4 * _TILE  # bytes from row to row of scratch, whose columns are the keys of a tile or the queries of a block
_SQUARE = _ROW * _TILE
_PRODUCTS_PER_THREAD = 1 << 18


def packed_attention_backward_native(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    d_out_THD: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values. Those of keys are summed over the heads that share them at the end."""
    q_THD, k_TGD, v_TGD = _with_dense_heads(q_THD), _with_dense_heads(k_TGD), _with_dense_heads(v_TGD)
    d_out_THD = _with_dense_heads(d_out_THD)
    tokens, heads, size = q_THD.shape
    d_q_THD, d_k_HTD, d_v_HTD = torch.empty(q_THD.shape), *torch.empty(2, heads, tokens, size)
    threads, scratch_PN = _threads_and_scratch(lengths, heads, size, rows=5 * size + 2)
    _backward.run(
        threads,
        _lens(lengths).data_ptr(),
        len(lengths),
        tokens,
        heads,
        heads // k_TGD.shape[1],
        size,
        window,
        scratch_PN.data_ptr(),
        4 * scratch_PN.shape[1],
        *_places(q_THD, k_TGD, v_TGD, out_THD),
        lse_HT.data_ptr(),
        *_places(d_out_THD),
        d_q_THD.data_ptr(),
        d_k_HTD.data_ptr(),
        d_v_HTD.data_ptr(),
        scale,
    )
    return d_q_THD, _sum_of_sharing(d_k_HTD, k_TGD.shape[1]), _sum_of_sharing(d_v_HTD, k_TGD.shape[1])


def _sum_of_sharing(d_x_HTD: Tensor, kv_heads: int) -> Tensor:
    """Over the query heads of each key/value head: d_x_TGD, not contiguous."""
    if len(d_x_HTD) == kv_heads:
        return d_x_HTD.transpose(0, 1)
    return d_x_HTD.unflatten(0, (kv_heads, -1)).sum(1).transpose(0, 1)


def _places(*tensors: Tensor) -> list[int]:
    """Address and bytes from token to token of each."""
    return [number for x_THD in tensors for number in (x_THD.data_ptr(), 4 * x_THD.stride(0))]


def _threads_and_scratch(lengths: tuple[int, ...], heads: int, size: int, rows: int) -> tuple[int, Tensor]:
    """Threads, and for each of them two squares, so many rows and the transposed tiles of the longest sequence."""
    threads = native.threads_for(sum(length * length for length in lengths) * heads * size, _PRODUCTS_PER_THREAD)
    tiles = -(-max(lengths, default=0) // _TILE)
    return threads, torch.empty(threads, _TILE * (rows + 2 * _TILE + tiles * size))


@lru_cache(maxsize=4)
def _lens(lengths: tuple[int, ...]) -> Tensor:
    """As a tensor, made once for all layers."""
    return torch.tensor(lengths, dtype=torch.int64)


def _with_dense_heads(x_THD: Tensor) -> Tensor:
    """The tensor, or a copy if a token's features are not side by side; a slice of the fused projection is fine."""
    return x_THD if x_THD.stride(2) == 1 and x_THD.stride(1) == x_THD.shape[2] else x_THD.contiguous()


@kernel("qqqqqqqqqqqqqqqqqqqqqqqd")
def _backward(arguments: int, thread: int, num_threads: int) -> None:
    numbers = int64s(arguments, 23)
    lengths, sequences, heads, window = numbers[0], numbers[1], numbers[3], numbers[6]
    lengths_S = int64s(lengths, sequences)
    total, done, start = heads * _cost_of_all(lengths_S, window), 0, 0
    for sequence in range(sequences):
        length = lengths_S[sequence]
        cost = _cost(length, window)
        for head in range(heads):
            if (2 * done + cost) * num_threads // (2 * total) == thread:
                _backward_item(arguments, thread, head, start, length)
            done += cost
        start += length


@part
def _cost(length: int, window: int) -> int:
    """Pairs of a block of queries and a tile of keys, and what transposing them costs beside."""
    blocks = (length + _TILE - 1) // _TILE
    seen = blocks if window == 0 else min(blocks, (window + _TILE - 2) // _TILE + 1)
    return seen * (seen + 1) // 2 + (blocks - seen) * seen + blocks


@part
def _cost_of_all(lengths_S: Any, window: int) -> int:
    total = 0
    for length in lengths_S:
        total += _cost(length, window)
    return total


@part
def _backward_item(arguments: int, thread: int, head: int, start: int, length: int) -> None:
    """One query head of the sequence that starts at token `start` of the pack; its part of dk and dv stays apart."""
    numbers = int64s(arguments, 23)
    tokens, heads, sharing, size, window = numbers[2], numbers[3], numbers[4], numbers[5], numbers[6]
    q_stride, k_stride, v_stride, out_stride = numbers[10], numbers[12], numbers[14], numbers[16]
    d_out_stride, d_q_stride, stride = numbers[19], 4 * heads * size, 4 * size
    scale = float32(float64s(arguments, 24)[23])
    # Transposed queries and gradients of outputs and queries [D, R], squares of probabilities and of gradients of
    # scores [C, R], logarithm of the denominator and mean gradient of each query, transposed keys [D, C] of every tile.
    scratch = numbers[7] + thread * numbers[8]
    queries, d_outs, d_queries = scratch, scratch + size * _ROW, scratch + 2 * size * _ROW
    scores = scratch + 3 * size * _ROW
    d_scores = scores + _SQUARE
    lse_R, mean_R = float32s(d_scores + _SQUARE, _TILE), float32s(d_scores + _SQUARE + _ROW, _TILE)
    q_rows = d_scores + _SQUARE + 2 * _ROW
    d_out_rows = q_rows + size * _ROW
    keys_DC = d_out_rows + size * _ROW
    q = numbers[9] + start * q_stride + 4 * head * size
    k = numbers[11] + start * k_stride + 4 * (head // sharing) * size
    v = numbers[13] + start * v_stride + 4 * (head // sharing) * size
    out = numbers[15] + start * out_stride + 4 * head * size
    lse = numbers[17] + 4 * (head * tokens + start)
    d_out = numbers[18] + start * d_out_stride + 4 * head * size
    d_q = numbers[20] + start * d_q_stride + 4 * head * size
    d_k, d_v = numbers[21] + (head * tokens + start) * stride, numbers[22] + (head * tokens + start) * stride
    _fill(float32s(d_k, length * size), float32(0))
    _fill(float32s(d_v, length * size), float32(0))
    for tile in range(0, length, _TILE):
        keys = min(_TILE, length - tile)
        _transpose(k + tile * k_stride, k_stride, keys, size, keys_DC + 4 * tile * size, float32(1))
    for block in range(0, length, _TILE):
        rows = min(_TILE, length - block)
        columns = (rows + 15) // 16 * 16
        q_block, d_out_block = q + block * q_stride, d_out + block * d_out_stride
        _transpose(q_block, q_stride, rows, size, queries, float32(1))
        _transpose(d_out_block, d_out_stride, rows, size, d_outs, float32(1))
        _copy_rows(q_block, q_stride, rows, size, q_rows)
        _copy_rows(d_out_block, d_out_stride, rows, size, d_out_rows)
        _fill(float32s(d_queries, size * _TILE), float32(0))
        _fill(lse_R, float32(0))
        _fill(mean_R, float32(0))
        for row in range(rows):
            lse_R[row] = float32s(lse + 4 * block, rows)[row]
            out_D = float32s(out + (block + row) * out_stride, size)
            mean_R[row] = _dot(out_D, float32s(d_out_block + row * d_out_stride, size))
        for tile in range(_first_tile(block, window), block + 1, _TILE):
            keys = min(_TILE, length - tile)
            _fill(float32s(scores, keys * _TILE), float32(0))
            _fill(float32s(d_scores, keys * _TILE), float32(0))
            _add_product(k + tile * k_stride, k_stride, queries, _ROW, scores, _ROW, keys, columns, size)
            _add_product(v + tile * v_stride, v_stride, d_outs, _ROW, d_scores, _ROW, keys, columns, size)
            _softmax_backward(scores, d_scores, keys, lse_R, mean_R, scale)
            _hide(scores, keys, block - tile, window, float32(0))
            _hide(d_scores, keys, block - tile, window, float32(0))
            _add_product(scores, _ROW, d_out_rows, 4 * size, d_v + tile * stride, stride, keys, size, rows)
            _add_product(d_scores, _ROW, q_rows, 4 * size, d_k + tile * stride, stride, keys, size, rows)
            _add_product(keys_DC + 4 * tile * size, _ROW, d_scores, _ROW, d_queries, _ROW, size, columns, keys)
        for row in range(rows):
            d_q_D = float32s(d_q + (block + row) * d_q_stride, size)
            d_queries_DR = float32s(d_queries + 4 * row, size * _TILE)
            for d in range(size):
                d_q_D[d] = d_queries_DR[d * _TILE]


@part
def _first_tile(block: int, window: int) -> int:
    """Where the first tile begins of which this block's first query sees something."""
    return 0 if window == 0 else max(0, block + 1 - window) // _TILE * _TILE


@part
def _add_product(
    a: int, a_stride: int, b: int, b_stride: int, c: int, c_stride: int, rows: int, columns: int, steps: int
) -> None:
    """C += A B; columns are a multiple of 16."""
    for column in range(0, columns, _TILE):
        width = min(_TILE, columns - column)
        for row in range(0, rows // 4 * 4, 4):
            _add_strip(
                a + row * a_stride, a_stride, b + 4 * column, b_stride,
                c + row * c_stride + 4 * column, c_stride, width, steps,
            )  # fmt: skip
        for row in range(rows // 4 * 4, rows):
            # Four times the same row onto itself: sums are in registers until all of them are written.
            _add_strip(
                a + row * a_stride, 0, b + 4 * column, b_stride, c + row * c_stride + 4 * column, 0, width, steps
            )


@part
def _add_strip(a: int, a_stride: int, b: int, b_stride: int, c: int, c_stride: int, width: int, steps: int) -> None:
    """4 rows of C += A B."""
    if width == _TILE:
        add_product_4_rows_64_columns(a, a_stride, b, b_stride, c, c_stride, steps, 0)
    else:
        for column in range(0, width, 16):
            add_product_4_rows_16_columns(a, a_stride, b + 4 * column, b_stride, c + 4 * column, c_stride, steps, 0)


@part
def _transpose(source: int, stride: int, count: int, size: int, target: int, factor: float) -> None:
    """`count` rows of `size` numbers into the columns of the target, zeros beyond them."""
    if count < _TILE:
        _fill(float32s(target, size * _TILE), float32(0))
    target_DC = float32s(target, size * _TILE)
    for c in range(count):
        # Along the row, though the other way would write side by side: rows often lie a power of two apart.
        source_D = float32s(source + c * stride, size)
        for d in range(size):
            target_DC[d * _TILE + c] = source_D[d] * factor


@part
def _copy_rows(source: int, stride: int, count: int, size: int, target: int) -> None:
    for row in range(count):
        source_D, target_D = float32s(source + row * stride, size), float32s(target + 4 * row * size, size)
        for d in range(size):
            target_D[d] = source_D[d]


@part
def _hide(scores: int, keys: int, ahead: int, window: int, value: float) -> None:
    """Put `value` where a query may not see a key; the first query stands `ahead` tokens behind the first key."""
    if ahead >= keys and (window == 0 or ahead + _TILE <= window):
        return
    for key in range(keys):
        scores_R = float32s(scores + key * _ROW, _TILE)
        for row in range(_TILE):
            distance = ahead + row - key
            if distance < 0 or (window != 0 and distance >= window):
                scores_R[row] = value


@part
def _softmax_backward(scores: int, d_weights: int, keys: int, lse_R: Any, mean_R: Any, scale: float) -> None:
    """Products of queries and keys become probabilities, gradients of probabilities become those of the products."""
    for key in range(keys):
        scores_R, d_weights_R = float32s(scores + key * _ROW, _TILE), float32s(d_weights + key * _ROW, _TILE)
        for row in range(_TILE):
            weight = exp(scores_R[row] * scale - lse_R[row])
            scores_R[row] = weight
            d_weights_R[row] = weight * (d_weights_R[row] - mean_R[row]) * scale


@part
def _dot(a_D: Any, b_D: Any) -> float:
    total = float32(0)
    for d in range(len(a_D)):
        total += a_D[d] * b_D[d]
    return total


@part
def _fill(x: Any, value: float) -> None:
    for place in range(len(x)):
        x[place] = value
