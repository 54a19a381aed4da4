"""Attention over a paged cache on the CPU, compiled: the cache is read where it lies, once for all heads that share it.

Shapes: T tokens of the batch, S sequences, H query heads, G key/value heads, R query heads per key/value head, D head size,
N blocks, P tokens per block, M blocks of the longest sequence, C tokens of a tile of keys.

The work is cut into items: a key/value head of up to 64 consecutive queries of one sequence. An item walks over tiles of 64
keys with a running maximum and sum (Milakov and Gimelshein, 2018), so that its result depends on nothing but its own sequence.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from numba import float32
from torch import Tensor

from harmonia.kernels import native
from harmonia.kernels.native import exp, float32s, float64s, int32s, int64s, kernel, part, share

_TILE = 64
_QUERIES = 64
# Below so many rows of queries, transposing the keys costs more than summing across each product does.
_MIN_ROWS_TO_TRANSPOSE = 16
_KEY_FEATURES_PER_THREAD = 8192
_WRITTEN_PER_THREAD = 65_536


def write_cache_native(k_TGD: Tensor, v_TGD: Tensor, k_NPGD: Tensor, v_NPGD: Tensor, slots_T: Tensor) -> None:
    """Keys and values to their slots."""
    tokens, heads, size = k_TGD.shape
    k_TGD, v_TGD = _with_dense_heads(k_TGD), _with_dense_heads(v_TGD)
    threads = native.threads_for(k_TGD.numel(), _WRITTEN_PER_THREAD)
    sources = (k_TGD.data_ptr(), k_TGD.stride(0), v_TGD.data_ptr(), v_TGD.stride(0))
    targets = (k_NPGD.data_ptr(), v_NPGD.data_ptr(), slots_T.data_ptr())
    _write_cache.run(threads, *sources, *targets, tokens, heads * size)


def paged_attention_native(
    q_THD: Tensor,
    k_NPGD: Tensor,
    v_NPGD: Tensor,
    block_table_SM: Tensor,
    query_lens: tuple[int, ...],
    context_lens: tuple[int, ...],
    scale: float,
    window: int,
) -> Tensor:
    """What `paged_attention` says."""
    q_THD = _with_dense_heads(q_THD)
    _, heads, size = q_THD.shape
    _, block_size, kv_heads, _ = k_NPGD.shape
    out_THD = torch.empty(q_THD.shape)
    sequences = len(query_lens)
    lens_2S = torch.tensor((query_lens, context_lens), dtype=torch.int64)
    threads = native.threads_for(sum(context_lens) * kv_heads * size, _KEY_FEATURES_PER_THREAD)
    per_kv_head = heads // kv_heads
    # A tile of keys and one of values, 64 scores, maximum and sum of each row of queries; whole pages keep threads apart.
    scratch_size = -(-(2 * _TILE * size + _TILE + 2 * _QUERIES * per_kv_head) // 1024) * 1024
    scratch = torch.empty(threads, scratch_size)
    _paged_attention.run(
        threads,
        q_THD.data_ptr(),
        out_THD.data_ptr(),
        k_NPGD.data_ptr(),
        v_NPGD.data_ptr(),
        block_table_SM.data_ptr(),
        lens_2S.data_ptr(),
        scratch.data_ptr(),
        scratch_size,
        q_THD.stride(0),
        block_table_SM.stride(0),
        sequences,
        per_kv_head,
        kv_heads,
        size,
        block_size,
        window,
        scale,
    )
    return out_THD


def _with_dense_heads(x_THD: Tensor) -> Tensor:
    """The tensor, or a copy if the features of a token are not side by side; a slice of the fused projection is fine."""
    return x_THD if x_THD.stride(2) == 1 and x_THD.stride(1) == x_THD.shape[2] else x_THD.contiguous()


@kernel("qqqqqqqqq")
def _write_cache(arguments: int, thread: int, num_threads: int) -> None:
    k, k_stride, v, v_stride, k_cache, v_cache, slots, tokens, size = int64s(arguments, 9)
    slots_T = int64s(slots, tokens)
    first, stop = share(tokens, thread, num_threads)
    for token in range(first, stop):
        offset = 4 * slots_T[token] * size
        _copy(float32s(k + 4 * token * k_stride, size), float32s(k_cache + offset, size))
        _copy(float32s(v + 4 * token * v_stride, size), float32s(v_cache + offset, size))


@kernel("qqqqqqqqqqqqqqqqd")
def _paged_attention(arguments: int, thread: int, num_threads: int) -> None:
    numbers = int64s(arguments, 16)
    lens, sequences, kv_heads, window = numbers[5], numbers[10], numbers[12], numbers[15]
    query_lens_S, context_lens_S = int64s(lens, sequences), int64s(lens + 8 * sequences, sequences)
    total = 0
    for sequence in range(sequences):
        total += kv_heads * _cost(query_lens_S[sequence], context_lens_S[sequence], window)
    done = 0
    query = 0
    for sequence in range(sequences):
        num_queries, context_len = query_lens_S[sequence], context_lens_S[sequence]
        for begin in range(0, num_queries, _QUERIES):
            count = min(_QUERIES, num_queries - begin)
            position = context_len - num_queries + begin
            cost = _cost(count, position + count, window)
            for kv_head in range(kv_heads):
                # An item belongs to the thread in whose share of the keys its middle lies.
                if (done + cost // 2) * num_threads // total == thread:
                    _item(arguments, thread, sequence, query + begin, count, position, kv_head)
                done += cost
        query += num_queries


@part
def _cost(num_queries: int, context_len: int, window: int) -> int:
    """Keys to visit, about, with one for each query beside them; the items of a sequence add up to no more than its own."""
    total = 0
    for begin in range(0, num_queries, _QUERIES):
        count = min(_QUERIES, num_queries - begin)
        stop = context_len - num_queries + begin + count
        keys = stop if window == 0 else min(stop, window + count)
        total += keys * (count + 3)  # reading a tile of keys costs as much as using it thrice
    return total


@part
def _item(
    arguments: int, thread: int, sequence: int, first_query: int, num_queries: int, position: int, kv_head: int
) -> None:
    """Queries of one key/value head; the first one stands at `position` of its sequence."""
    q, out, k, v, table, _, scratch, scratch_size, q_stride, table_stride, _, sharing, kv_heads, size, block, window = (
        int64s(arguments, 16)
    )
    scale = float32(float64s(arguments, 17)[16])
    keys, values = scratch + 4 * thread * scratch_size, scratch + 4 * (thread * scratch_size + _TILE * size)
    scores_C = float32s(values + 4 * _TILE * size, _TILE)
    num_rows = num_queries * sharing
    largest_R = float32s(values + 4 * _TILE * (size + 1), num_rows)
    sum_R = float32s(values + 4 * (_TILE * (size + 1) + num_rows), num_rows)
    out_stride = kv_heads * sharing * size
    out += 4 * (first_query * out_stride + kv_head * sharing * size)
    q += 4 * (first_query * q_stride + kv_head * sharing * size)
    for row in range(num_rows):
        largest_R[row] = -math.inf
        sum_R[row] = 0
        _fill_zero(float32s(out + 4 * ((row // sharing) * out_stride + (row % sharing) * size), size))
    blocks_M = int32s(table + 4 * sequence * table_stride, table_stride)
    transposed = num_rows >= _MIN_ROWS_TO_TRANSPOSE
    first_key = 0 if window == 0 else max(0, position + 1 - window)
    stop_key = position + num_queries
    for tile in range(first_key // _TILE * _TILE, stop_key, _TILE):
        count = min(_TILE, stop_key - tile)
        for c in range(count):
            slot = blocks_M[(tile + c) // block] * block + (tile + c) % block
            offset = 4 * (slot * kv_heads + kv_head) * size
            if transposed:
                _scatter(float32s(k + offset, size), keys + 4 * c)
            else:
                _copy(float32s(k + offset, size), float32s(keys + 4 * c * size, size))
            _copy(float32s(v + offset, size), float32s(values + 4 * c * size, size))
        for row in range(num_rows):
            query = row // sharing
            last = position + query - tile  # in the tile
            first = 0 if window == 0 else max(0, last + 1 - window)
            if last < 0 or first >= count:
                continue
            q_D = float32s(q + 4 * (query * q_stride + (row % sharing) * size), size)
            if transposed:
                _scores_of_transposed(q_D, keys, scores_C, scale)
            else:
                _scores(q_D, keys, scores_C, count, scale)
            out_D = float32s(out + 4 * (query * out_stride + (row % sharing) * size), size)
            _fold(scores_C, values, first, min(last + 1, count), row, largest_R, sum_R, out_D)
    for row in range(num_rows):
        out_D = float32s(out + 4 * ((row // sharing) * out_stride + (row % sharing) * size), size)
        factor = float32(1) / sum_R[row]
        for d in range(size):
            out_D[d] *= factor


@part
def _copy(source_D: Any, target_D: Any) -> None:
    for d in range(len(target_D)):
        target_D[d] = source_D[d]


@part
def _fill_zero(target_D: Any) -> None:
    for d in range(len(target_D)):
        target_D[d] = 0


@part
def _scatter(key_D: Any, column: int) -> None:
    for d in range(len(key_D)):
        float32s(column + 4 * _TILE * d, 1)[0] = key_D[d]


@part
def _scores(q_D: Any, keys: int, scores_C: Any, count: int, scale: float) -> None:
    """Four keys at a time; beyond the last one stands what an earlier tile left, which nobody reads."""
    size = len(q_D)
    for c in range(0, count, 4):
        k0_D, k1_D = float32s(keys + 4 * c * size, size), float32s(keys + 4 * (c + 1) * size, size)
        k2_D, k3_D = float32s(keys + 4 * (c + 2) * size, size), float32s(keys + 4 * (c + 3) * size, size)
        s0 = s1 = s2 = s3 = float32(0)
        for d in range(size):
            x = q_D[d]
            s0 += x * k0_D[d]
            s1 += x * k1_D[d]
            s2 += x * k2_D[d]
            s3 += x * k3_D[d]
        scores_C[c] = s0 * scale
        scores_C[c + 1] = s1 * scale
        scores_C[c + 2] = s2 * scale
        scores_C[c + 3] = s3 * scale


@part
def _scores_of_transposed(q_D: Any, keys: int, scores_C: Any, scale: float) -> None:
    """Keys lie as (feature, key): sums of 64 keys side by side, eight features in one pass (head sizes are multiples of 8)."""
    for c in range(_TILE):
        scores_C[c] = 0
    for d in range(0, len(q_D), 8):
        row = keys + 4 * d * _TILE
        k0_C, k1_C = float32s(row, _TILE), float32s(row + 4 * _TILE, _TILE)
        k2_C, k3_C = float32s(row + 8 * _TILE, _TILE), float32s(row + 12 * _TILE, _TILE)
        k4_C, k5_C = float32s(row + 16 * _TILE, _TILE), float32s(row + 20 * _TILE, _TILE)
        k6_C, k7_C = float32s(row + 24 * _TILE, _TILE), float32s(row + 28 * _TILE, _TILE)
        q0, q1, q2, q3 = q_D[d] * scale, q_D[d + 1] * scale, q_D[d + 2] * scale, q_D[d + 3] * scale
        q4, q5, q6, q7 = q_D[d + 4] * scale, q_D[d + 5] * scale, q_D[d + 6] * scale, q_D[d + 7] * scale
        for c in range(_TILE):
            low = q0 * k0_C[c] + q1 * k1_C[c] + q2 * k2_C[c] + q3 * k3_C[c]
            scores_C[c] += low + q4 * k4_C[c] + q5 * k5_C[c] + q6 * k6_C[c] + q7 * k7_C[c]


@part
def _fold(
    scores_C: Any, values: int, first: int, stop: int, row: int, largest_R: Any, sum_R: Any, out_D: Any
) -> None:
    """Add the keys from `first` to `stop` of a tile to a row's running softmax."""
    largest = largest_R[row]
    for c in range(_TILE):
        score = scores_C[c] if first <= c < stop else float32(-math.inf)
        scores_C[c] = score
        largest = score if score > largest else largest
    correction = exp(largest_R[row] - largest)
    total = float32(0)
    for c in range(_TILE):
        weight = exp(scores_C[c] - largest) if first <= c < stop else float32(0)
        scores_C[c] = weight
        total += weight
    largest_R[row] = largest
    sum_R[row] = sum_R[row] * correction + total
    size = len(out_D)
    for d in range(size):
        out_D[d] *= correction
    for c in range(first // 4 * 4, stop, 4):
        v0_D, v1_D = float32s(values + 4 * c * size, size), float32s(values + 4 * (c + 1) * size, size)
        v2_D, v3_D = float32s(values + 4 * (c + 2) * size, size), float32s(values + 4 * (c + 3) * size, size)
        p0, p1, p2, p3 = scores_C[c], scores_C[c + 1], scores_C[c + 2], scores_C[c + 3]
        for d in range(size):
            out_D[d] += p0 * v0_D[d] + p1 * v1_D[d] + p2 * v2_D[d] + p3 * v3_D[d]
