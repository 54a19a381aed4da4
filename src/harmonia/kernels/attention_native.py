"""Causal attention on the CPU, compiled: keys and values are read once for all heads that share them.

Shapes: T tokens of the batch, S sequences, H query heads, G key/value heads, D head size, N blocks, P tokens per block,
B blocks of all sequences, C keys of a tile, R rows of an item: its queries in each head that shares keys.

The work is cut into items: a key/value head of some consecutive queries of one sequence. An item walks over tiles of 64
keys with a running maximum and sum (Milakov and Gimelshein, 2018), so that nothing but its own sequence matters to it.
Nor does its size: a row meets the same tiles, and each sum over features or keys runs in their order, in whichever item
it is. So a token's output is the same bits whether it is decoded, part of a chunk, or of a sequence that is trained on.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

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
    int32s,
    int64s,
    part,
    prefetch,
    share,
    transpose_16_by_16,
)

HEAD_STEP = 16  # head sizes are a multiple of this
_TILE = 64
_MAX_ROWS = 192  # of queries in one item, a multiple of 4: they and their sums stay in the second-level cache
_LOWEST = -1e30  # finite, so that it can be subtracted from itself
# From so many rows of queries on, values are copied side by side before they are used.
_MIN_ROWS_TO_COPY = 12
_KEY_FEATURES_PER_THREAD = 8192
_WRITTEN_PER_THREAD = 65_536
_NUMBERS = 21  # whole ones among the arguments of a run


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
    blocks_B: Tensor,
    block_starts_S: Tensor,
    query_lens: tuple[int, ...],
    context_lens: tuple[int, ...],
    scale: float,
    window: int,
) -> Tensor:
    """What `paged_attention` says; head sizes are multiples of 16."""
    _, block_size, kv_heads, size = k_NPGD.shape
    q_THD, out_THD = _with_dense_heads(q_THD), torch.empty(q_THD.shape)
    sources = _Sources(k_NPGD.data_ptr(), v_NPGD.data_ptr(), kv_heads * size, kv_heads * size)
    table = _Table(blocks_B.data_ptr(), block_starts_S.data_ptr(), block_size, block_size)
    _run_items(q_THD, out_THD, 0, sources, table, _Shape(_lens(query_lens, context_lens), kv_heads, window, scale))
    return out_THD


def packed_attention_native(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, lengths: tuple[int, ...], scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """(out_THD, lse_HT), as `packed_attention` says: each sequence is one block of tokens, kept where it is."""
    tokens, kv_heads, _ = k_TGD.shape
    q_THD, k_TGD, v_TGD = _with_dense_heads(q_THD), _with_dense_heads(k_TGD), _with_dense_heads(v_TGD)
    out_THD, lse_HT = torch.empty(q_THD.shape), torch.empty(q_THD.shape[1], tokens)
    sources = _Sources(k_TGD.data_ptr(), v_TGD.data_ptr(), k_TGD.stride(0), v_TGD.stride(0))
    starts_S, own_S = _starts(lengths)
    table = _Table(starts_S.data_ptr(), own_S.data_ptr(), 1, max(tokens, 1))
    shape = _Shape(_lens(lengths, lengths), kv_heads, window, scale)
    _run_items(q_THD, out_THD, lse_HT.data_ptr(), sources, table, shape)
    return out_THD, lse_HT


class _Sources(NamedTuple):
    """Addresses of keys and values, and numbers from token to token of each."""

    k: int
    v: int
    k_stride: int
    v_stride: int


class _Table(NamedTuple):
    """Where blocks are: addresses of their numbers and of each sequence's first one, tokens that a number counts."""

    blocks: int
    block_starts: int
    step: int
    block_size: int


class _Shape(NamedTuple):
    lens_2S: Tensor
    kv_heads: int
    window: int
    scale: float


def _run_items(q_THD: Tensor, out_THD: Tensor, lse: int, sources: _Sources, table: _Table, shape: _Shape) -> None:
    tokens, heads, size = q_THD.shape
    sharing = heads // shape.kv_heads
    assert sharing <= _MAX_ROWS
    keys = int(shape.lens_2S[1].sum())
    threads = native.threads_for(keys * shape.kv_heads * size, _KEY_FEATURES_PER_THREAD)
    # A tile of keys and one of values, queries and their sums, scores of 4 rows, maximum and total of each row.
    scratch = torch.empty(threads, 2 * _TILE * size + 2 * _MAX_ROWS * size + 4 * _TILE + 2 * _MAX_ROWS)
    _attention.run(
        threads,
        q_THD.data_ptr(),
        out_THD.data_ptr(),
        sources.k,
        sources.v,
        table.blocks,
        shape.lens_2S.data_ptr(),
        scratch.data_ptr(),
        scratch.shape[1],
        q_THD.stride(0),
        table.block_starts,
        shape.lens_2S.shape[1],
        sharing,
        shape.kv_heads,
        size,
        table.block_size,
        shape.window,
        table.step,
        sources.k_stride,
        sources.v_stride,
        lse,
        tokens,
        shape.scale,
    )


@lru_cache(maxsize=4)
def _starts(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """First token of each sequence, and its index among the sequences."""
    starts = torch.tensor([0, *lengths[:-1]], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return starts, torch.arange(len(lengths), dtype=torch.int32)


@lru_cache(maxsize=4)
def _lens(query_lens: tuple[int, ...], context_lens: tuple[int, ...]) -> Tensor:
    """Both as a tensor, made once for all layers."""
    return torch.tensor((query_lens, context_lens), dtype=torch.int64)


def _with_dense_heads(x_THD: Tensor) -> Tensor:
    """The tensor, or a copy if a token's features are not side by side; a slice of the fused projection is fine."""
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


@kernel("qqqqqqqqqqqqqqqqqqqqqd")
def _attention(arguments: int, thread: int, num_threads: int) -> None:
    numbers = int64s(arguments, _NUMBERS)
    lens, sequences, sharing, kv_heads, window = numbers[5], numbers[10], numbers[11], numbers[12], numbers[15]
    query_lens_S, context_lens_S = int64s(lens, sequences), int64s(lens + 8 * sequences, sequences)
    item_queries = max(1, _MAX_ROWS // sharing)
    total = done = query = 0
    for sequence in range(sequences):
        for begin in range(0, query_lens_S[sequence], item_queries):
            position = context_lens_S[sequence] - query_lens_S[sequence] + begin
            total += kv_heads * _cost(position, min(item_queries, query_lens_S[sequence] - begin), window)
    for sequence in range(sequences):
        for begin in range(0, query_lens_S[sequence], item_queries):
            count = min(item_queries, query_lens_S[sequence] - begin)
            position = context_lens_S[sequence] - query_lens_S[sequence] + begin
            cost = _cost(position, count, window)
            for kv_head in range(kv_heads):
                # An item belongs to the thread in whose share of the costs its middle lies.
                if (2 * done + cost) * num_threads // (2 * total) == thread:
                    _item(arguments, thread, sequence, query + begin, count, position, kv_head)
                done += cost
        query += query_lens_S[sequence]


@part
def _cost(position: int, count: int, window: int) -> int:
    """Reading a key costs about as much as using it for 3 queries."""
    keys = position + count if window == 0 else min(position + count, window + count)
    return keys * (count + 3)


@part
def _item(arguments: int, thread: int, sequence: int, query: int, count: int, position: int, kv_head: int) -> None:
    """`count` queries of one key/value head; the first is token `query` of the batch at `position` of its sequence."""
    numbers = int64s(arguments, _NUMBERS)
    q, out, q_stride = numbers[0], numbers[1], numbers[8]
    sharing, kv_heads, size, window = numbers[11], numbers[12], numbers[13], numbers[15]
    scale = float32(float64s(arguments, _NUMBERS + 1)[_NUMBERS])
    num_rows = count * sharing
    # The layout that `paged_attention_native` reserved; keys and values come first.
    scratch = numbers[6] + 4 * thread * numbers[7]
    queries = scratch + 8 * _TILE * size
    sums = queries + 4 * _MAX_ROWS * size
    scores = sums + 4 * _MAX_ROWS * size
    largest_R = float32s(scores + 16 * _TILE, _MAX_ROWS)
    total_R = float32s(scores + 16 * _TILE + 4 * _MAX_ROWS, _MAX_ROWS)
    for row in range((num_rows + 3) // 4 * 4):
        source = min(row, num_rows - 1)  # rows that fill up a group of 4 repeat the last one
        head = kv_head * sharing + source % sharing
        q_D = float32s(q + 4 * ((query + source // sharing) * q_stride + head * size), size)
        _scale(q_D, scale, float32s(queries + 4 * row * size, size))
        _fill(float32s(sums + 4 * row * size, size), float32(0))
        largest_R[row], total_R[row] = float32(_LOWEST), float32(0)
    first_key = 0 if window == 0 else max(0, position + 1 - window)
    stop_key = position + count
    in_place = num_rows < _MIN_ROWS_TO_COPY
    for tile in range(first_key // _TILE * _TILE, stop_key, _TILE):
        keys_in_tile = min(_TILE, stop_key - tile)
        _load_keys(arguments, scratch, sequence, kv_head, tile, keys_in_tile, stop_key)
        if not in_place:
            _load_values(arguments, scratch + 4 * _TILE * size, sequence, kv_head, tile, keys_in_tile)
        # Rows whose query comes before the tile see nothing of it.
        for row in range(max(0, tile - position) * sharing // 4 * 4, num_rows, 4):
            rows, sums_of_rows = min(4, num_rows - row), sums + 4 * row * size
            _scores_of_tile(queries + 4 * row * size, scratch, scores, size)
            _mask(scores, position - tile, row, rows, sharing, window)
            _fold(scores, row, rows, largest_R, total_R, sums_of_rows, size)
            if in_place:
                _add_values_in_place(arguments, sequence, kv_head, tile, keys_in_tile, stop_key, scores, sums_of_rows)
            else:
                _add_values(scores, scratch + 4 * _TILE * size, 4 * size, sums_of_rows, size, _TILE)
    lse, tokens = numbers[19], numbers[20]
    for row in range(num_rows):
        token, head = query + row // sharing, kv_head * sharing + row % sharing
        target = out + 4 * (token * kv_heads * sharing + head) * size
        _scale(float32s(sums + 4 * row * size, size), float32(1) / total_R[row], float32s(target, size))
        if lse != 0:
            float32s(lse + 4 * (head * tokens + token), 1)[0] = largest_R[row] + float32(math.log(total_R[row]))


@part
def _run(arguments: int, sequence: int, key: int, stop: int) -> tuple[int, int]:
    """(place of this key in the cache, keys up to `stop` that follow it there)."""
    numbers = int64s(arguments, _NUMBERS)
    block_size, step = numbers[14], numbers[16]
    index = int32s(numbers[9] + 4 * sequence, 1)[0] + key // block_size
    inside = key % block_size
    return int32s(numbers[4] + 4 * index, 1)[0] * step + inside, min(block_size - inside, stop - key)


@part
def _load_keys(arguments: int, keys: int, sequence: int, kv_head: int, tile: int, count: int, stop: int) -> None:
    """Keys of a tile, transposed; zeros beyond the last one."""
    numbers = int64s(arguments, _NUMBERS)
    stride, size = 4 * numbers[17], numbers[13]
    if count < _TILE:
        _fill(float32s(keys, _TILE * size), float32(0))
    done = 0
    while done < count:
        place, run = _run(arguments, sequence, tile + done, tile + count)
        source = numbers[2] + place * stride + 4 * kv_head * size
        _prefetch_ahead(arguments, sequence, kv_head, 0, tile + done, run, stop)
        for c in range(0, run - 15, 16):
            for d in range(0, size, 16):
                target = keys + 4 * (_TILE * d + done + c)
                transpose_16_by_16(source + c * stride + 4 * d, stride, target, 4 * _TILE)
        for c in range(run // 16 * 16, run):
            _scatter(float32s(source + c * stride, size), keys + 4 * (done + c))
        done += run


@part
def _load_values(arguments: int, values: int, sequence: int, kv_head: int, tile: int, count: int) -> None:
    """Values of a tile side by side; what lies beyond the last one is zero, so that it weighs nothing."""
    numbers = int64s(arguments, _NUMBERS)
    stride, size = 4 * numbers[18], numbers[13]
    if count < _TILE:
        _fill(float32s(values, _TILE * size), float32(0))
    done = 0
    while done < count:
        place, run = _run(arguments, sequence, tile + done, tile + count)
        source = numbers[3] + place * stride + 4 * kv_head * size
        for c in range(run):
            _copy(float32s(source + c * stride, size), float32s(values + 4 * (done + c) * size, size))
        done += run


@part
def _prefetch_ahead(arguments: int, sequence: int, kv_head: int, which: int, key: int, count: int, stop: int) -> None:
    """Ask for keys (0) or values (1) of the tile after this one, which may be the first of the next item."""
    numbers = int64s(arguments, _NUMBERS)
    lens, sequences, kv_heads, size, window = numbers[5], numbers[10], numbers[12], numbers[13], numbers[15]
    ahead = key + _TILE
    if ahead >= stop:
        sequence += (kv_head + 1) // kv_heads
        kv_head = (kv_head + 1) % kv_heads
        if sequence == sequences:
            return
        stop = int64s(lens + 8 * sequences, sequences)[sequence]
        ahead = key % _TILE + (0 if window == 0 else max(0, stop - window) // _TILE * _TILE)
    if ahead < stop:
        place, run = _run(arguments, sequence, ahead, min(stop, ahead + count))
        source, stride = numbers[2 + which], 4 * numbers[17 + which]
        for c in range(run):
            prefetch(source + (place + c) * stride + 4 * kv_head * size, 4 * size)


@part
def _add_values_in_place(
    arguments: int, sequence: int, kv_head: int, tile: int, count: int, stop: int, weights: int, sums: int
) -> None:
    numbers = int64s(arguments, _NUMBERS)
    stride, size = 4 * numbers[18], numbers[13]
    done = 0
    while done < count:
        place, run = _run(arguments, sequence, tile + done, tile + count)
        _prefetch_ahead(arguments, sequence, kv_head, 1, tile + done, run, stop)
        _add_values(weights + 4 * done, numbers[3] + place * stride + 4 * kv_head * size, stride, sums, size, run)
        done += run


@part
def _copy(source_D: Any, target_D: Any) -> None:
    for d in range(len(target_D)):
        target_D[d] = source_D[d]


@part
def _scale(source_D: Any, factor: float, target_D: Any) -> None:
    for d in range(len(target_D)):
        target_D[d] = source_D[d] * factor


@part
def _fill(target_D: Any, value: float) -> None:
    for d in range(len(target_D)):
        target_D[d] = value


@part
def _scatter(key_D: Any, column: int) -> None:
    for d in range(len(key_D)):
        float32s(column + 4 * _TILE * d, 1)[0] = key_D[d]


@part
def _scores_of_tile(queries: int, keys: int, scores: int, size: int) -> None:
    """4 rows of queries with transposed keys."""
    _fill(float32s(scores, 4 * _TILE), float32(0))
    add_product_4_rows_64_columns(queries, 4 * size, keys, 4 * _TILE, scores, 4 * _TILE, size, 0)


@part
def _add_values(weights: int, values: int, stride: int, sums: int, size: int, count: int) -> None:
    wide = size // 64 * 64
    for d in range(0, wide, 64):
        add_product_4_rows_64_columns(weights, 4 * _TILE, values + 4 * d, stride, sums + 4 * d, 4 * size, count, 0)
    for d in range(wide, size, 16):
        add_product_4_rows_16_columns(weights, 4 * _TILE, values + 4 * d, stride, sums + 4 * d, 4 * size, count, 0)


@part
def _mask(scores: int, position: int, first_row: int, rows: int, sharing: int, window: int) -> None:
    """Take out what the rows must not see; `position` of the first query counts from the tile's start."""
    for row in range(rows):
        last = position + (first_row + row) // sharing
        scores_C = float32s(scores + 4 * row * _TILE, _TILE)
        if last + 1 < _TILE:
            for c in range(max(0, last + 1), _TILE):
                scores_C[c] = -math.inf
        if window != 0:
            for c in range(min(_TILE, last + 1 - window)):
                scores_C[c] = -math.inf


@part
def _fold(scores: int, first_row: int, rows: int, largest_R: Any, total_R: Any, sums: int, size: int) -> None:
    """Turn scores into weights and make each row's running sums relative to the largest score so far."""
    for i in range(rows):
        row, scores_C = first_row + i, float32s(scores + 4 * i * _TILE, _TILE)
        before = largest = largest_R[row]
        for c in range(_TILE):
            largest = scores_C[c] if scores_C[c] > largest else largest
        total = float32(0)
        for c in range(_TILE):
            weight = exp(scores_C[c] - largest)
            # `exp` is never quite zero, and what is hidden may not count: elsewhere it does not exist.
            weight = float32(0) if scores_C[c] == -math.inf else weight
            scores_C[c] = weight
            total += weight
        if largest != before:
            largest_R[row] = largest
            correction = exp(before - largest)
            total_R[row] *= correction
            _scale_in_place(float32s(sums + 4 * i * size, size), correction)
        total_R[row] += total


@part
def _scale_in_place(sum_D: Any, factor: float) -> None:
    for d in range(len(sum_D)):
        sum_D[d] *= factor
