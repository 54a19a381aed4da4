"""Causal attention of chunks of several sequences on a GPU, over the paged cache or over keys that lie side by side.

A program takes some consecutive queries of a sequence in every head that shares keys: these are the rows of its
products, so that few queries fill a tile too and less of the diagonal is computed in vain. Which queries are whose is
in a table, one row a tile, that the host makes once for all layers.

The invariant form always works in the same tiles of rows and keys, walks over the keys from the beginning of the
sequence, or of a tile when a window begins there, and has one loop for all of them. What one query gets is then the
same sums in the same order whether it comes alone, in a chunk of any size, or in a training batch: tiles of keys that
it does not see leave its sums as they are.

Shapes: T tokens, S sequences, H query heads, G key/value heads, D head size, N blocks, P tokens per block, I tiles of
queries; in kernels R rows (queries by heads that share keys), C keys of a tile.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634
LARGE_TILE = 128  # rows
_STAGES_WITHOUT_PAGES = 3
_LN_2 = tl.constexpr(0.6931471805599453)


class PrefillChoice(NamedTuple):
    """How the kernel is compiled: rows and keys of a tile."""

    rows: int
    tile: int
    warps: int
    stages: int


class Keys(NamedTuple):
    """Keys and values of all sequences, in pages of a cache or, where `blocks_B` is missing, as tokens one by one."""

    k: Tensor
    """NPGD or TGD."""
    v: Tensor
    blocks_B: Tensor | None
    starts_S: Tensor
    """int32: where each sequence's begin, in `blocks_B` or in the tokens."""
    lens_S: Tensor
    """int32: how many each sequence has."""


def prefill_attention(
    q_THD: Tensor,
    keys: Keys,
    tiles_I4: Tensor,
    choice: PrefillChoice,
    scale: float,
    window: int,
    *,
    invariant: bool = False,
    out_THD: Tensor | None = None,
    lse_HT: Tensor | None = None,
) -> Tensor:
    """Attention of the queries that `tiles_I4` names: out_THD, of which other rows are left as they are.

    `lse_HT`, if given, receives the logarithms of the softmaxes' denominators.
    """
    num_tokens, heads, size = q_THD.shape
    kv_heads = keys.k.shape[-2]
    out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format) if out_THD is None else out_THD
    if len(tiles_I4) == 0:
        return out_THD
    paged = keys.blocks_B is not None
    block_size = keys.k.shape[1] if paged else 1
    strides = (size * kv_heads,) * 2 if paged else (keys.k.stride(0), keys.v.stride(0))
    _prefill[(kv_heads, len(tiles_I4))](
        *(q_THD, keys.k, keys.v, out_THD, lse_HT, tiles_I4, keys.blocks_B, keys.starts_S, keys.lens_S),
        *(q_THD.stride(0), *strides, num_tokens, scale * _LOG2_E, window),
        *(kv_heads, heads // kv_heads, choice.rows, choice.tile, size, padded_size(size), block_size),
        *(paged, window > 0, invariant or window > 0, lse_HT is not None),
        num_warps=choice.warps,
        num_stages=choice.stages if paged else min(choice.stages, _STAGES_WITHOUT_PAGES),
    )
    return out_THD


def padded_size(size: int) -> int:
    """Of a head inside kernels."""
    return max(16, triton.next_power_of_2(size))


def prefill_choice(q_THD: Tensor, sharing: int, *, invariant: bool, programs: float = math.inf) -> PrefillChoice:
    """The tiles for heads of this size and type; those of the invariant form depend on nothing else.

    programs: how many large tiles there would be for each processor.
    """
    size, least_rows = q_THD.shape[2], triton.next_power_of_2(sharing)
    if q_THD.dtype.itemsize == 4:  # whole rows are held in registers: tensor cores would round
        return PrefillChoice(max(32, least_rows), 32 if size <= 64 else 16, warps=4, stages=1)
    # Block numbers and the keys that they lead to share the stages: 5 keep two tiles of keys on their way, 3 one.
    roomy = _has_room(q_THD.device)
    if invariant or programs < 1 or not roomy:
        return PrefillChoice(max(64, least_rows), 64 if size <= 128 else 32, warps=4, stages=5 if roomy else 3)
    return PrefillChoice(max(LARGE_TILE, least_rows), 128 if size <= 128 else 32, warps=8, stages=5)


@cache
def _has_room(device: torch.device) -> bool:
    """Whether processors have the 228 KB of shared memory of an H100."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor >= 228 << 10


def prefill_tiles(
    query_lens: tuple[int, ...], context_lens: tuple[int, ...], queries_per_tile: int, first_sequence: int
) -> Tensor:
    """int32 on the host, tiles with most keys first; of each its sequence, its first query's token, how many queries it
    has, and how many tokens of the sequence's context are not before the first one.
    """
    queries_S, contexts_S = np.array(query_lens, np.int64), np.array(context_lens, np.int64)
    starts_S = queries_S.cumsum() - queries_S
    tiles_S = -(-queries_S // queries_per_tile)
    tiles_S[:first_sequence] = 0
    sequence_I = np.repeat(np.arange(len(query_lens)), tiles_S)
    first_I = (np.arange(len(sequence_I)) - np.repeat(tiles_S.cumsum() - tiles_S, tiles_S)) * queries_per_tile
    back_I = queries_S[sequence_I] - first_I
    count_I = np.minimum(back_I, queries_per_tile)
    order_I = np.argsort(back_I - count_I - contexts_S[sequence_I], kind="stable")
    columns = (sequence_I, starts_S[sequence_I] + first_I, count_I, back_I)
    return torch.from_numpy(np.stack(columns, axis=1)[order_I].astype(np.int32))


def tiles_on_device(query_starts_S1: Tensor, num_tokens: int, queries_per_tile: int) -> Tensor:
    """`prefill_tiles` where the host knows no lengths: as many as there can be, those left over without queries."""
    starts_S, queries_S = query_starts_S1[:-1], query_starts_S1.diff()
    tiles_S = (queries_S + (queries_per_tile - 1)) // queries_per_tile
    ends_S = tiles_S.cumsum(0)
    index_I = torch.arange(num_tokens // queries_per_tile + len(starts_S), device=query_starts_S1.device)
    sequence_I = torch.searchsorted(ends_S, index_I, right=True)
    is_used_I = sequence_I < len(starts_S)
    sequence_I = sequence_I.clamp(max=len(starts_S) - 1)
    first_I = (index_I - (ends_S - tiles_S)[sequence_I]) * queries_per_tile
    back_I = queries_S[sequence_I] - first_I
    count_I = torch.where(is_used_I, back_I.clamp(max=queries_per_tile), 0)
    return torch.stack((sequence_I, starts_S[sequence_I] + first_I, count_I, back_I), dim=1).int()


@triton.jit(do_not_specialize=["num_tokens", "window"])
def _prefill(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    tiles_ptr,
    blocks_ptr,
    starts_ptr,
    lens_ptr,
    q_stride,
    k_stride,
    v_stride,
    num_tokens,
    scale,
    window,
    G: tl.constexpr,
    SHARING: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    PAGED: tl.constexpr,
    WINDOWED: tl.constexpr,
    ONE_LOOP: tl.constexpr,
    HAS_LSE: tl.constexpr,
):
    """One tile of queries in the heads that share keys; D is the padded head size."""
    kv_head = tl.program_id(0)
    tiles_ptr += 4 * tl.program_id(1)
    sequence, first_token, count = tl.load(tiles_ptr), tl.load(tiles_ptr + 1), tl.load(tiles_ptr + 2)
    if count == 0:
        return  # left over, in a graph
    length = tl.load(lens_ptr + sequence)
    first = length - tl.load(tiles_ptr + 3)  # the position of the first query
    stop = tl.where(length > 0, first + count, 0)
    keys_from = tl.load(starts_ptr + sequence)
    row_R, d_D = tl.arange(0, R), tl.arange(0, D)
    query_R, head_R = row_R // SHARING, kv_head * SHARING + row_R % SHARING
    here_RD = (query_R < count)[:, None] & (d_D < SIZE)
    position_R = first + query_R
    token_R = (first_token + query_R).to(tl.int64)
    q_RD = tl.load(q_ptr + token_R[:, None] * q_stride + head_R[:, None] * SIZE + d_D, mask=here_RD, other=0.0)
    k_ptr += kv_head * SIZE
    v_ptr += kv_head * SIZE
    top_R = tl.full([R], float("-inf"), tl.float32)
    total_R = tl.zeros([R], tl.float32)
    sum_RD = tl.zeros([R, D], tl.float32)
    start = 0
    if WINDOWED:
        start = tl.maximum(first + 1 - window, 0) // C * C
    if not ONE_LOOP:
        seen_by_all = (first + 1) // C * C
        top_R, total_R, sum_RD = _attend(
            q_RD, top_R, total_R, sum_RD, k_ptr, v_ptr, blocks_ptr, keys_from, k_stride, v_stride,
            position_R, start, seen_by_all, stop, scale, window, C, SIZE, D, P, PAGED, WINDOWED, False,
        )  # fmt: skip
        start = seen_by_all
    top_R, total_R, sum_RD = _attend(
        q_RD, top_R, total_R, sum_RD, k_ptr, v_ptr, blocks_ptr, keys_from, k_stride, v_stride,
        position_R, start, stop, stop, scale, window, C, SIZE, D, P, PAGED, WINDOWED, True,
    )  # fmt: skip
    total_R = tl.where(total_R > 0, total_R, 1.0)  # a row that is padding sees nothing
    out_RD = (sum_RD / total_R[:, None]).to(out_ptr.dtype.element_ty)
    into_R = (token_R * (G * SHARING) + head_R) * SIZE
    tl.store(out_ptr + into_R[:, None] + d_D, out_RD, here_RD)
    if HAS_LSE:
        lse_R = (top_R + tl.log2(total_R)) * _LN_2
        tl.store(lse_ptr + head_R.to(tl.int64) * num_tokens + token_R, lse_R, query_R < count)


@triton.jit
def _attend(
    q_RD,
    top_R,
    total_R,
    sum_RD,
    k_ptr,
    v_ptr,
    blocks_ptr,
    keys_from,
    k_stride,
    v_stride,
    position_R,
    begin,
    end,
    stop,
    scale,
    window,
    C: tl.constexpr,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    PAGED: tl.constexpr,
    WINDOWED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Walk over the keys from `begin` to `end`; MASKED where some are not there, or not for all rows."""
    key_C, d_D = tl.arange(0, C), tl.arange(0, D)
    for start in range(begin, end, C):
        key_position_C = start + key_C
        if PAGED:
            blocks_C = blocks_ptr + keys_from + key_position_C // P
            block_C = tl.load(blocks_C, mask=key_position_C < stop, other=0) if MASKED else tl.load(blocks_C)
            place_C = (block_C * P + key_position_C % P).to(tl.int64)
        else:
            place_C = (keys_from + key_position_C).to(tl.int64)
        k_from_CD, v_from_CD = k_ptr + (place_C * k_stride)[:, None] + d_D, v_ptr + (place_C * v_stride)[:, None] + d_D
        if MASKED or D != SIZE:
            here_CD = (key_position_C < stop)[:, None] & (d_D < SIZE)
            k_CD, v_CD = tl.load(k_from_CD, mask=here_CD, other=0.0), tl.load(v_from_CD, mask=here_CD, other=0.0)
        else:
            k_CD, v_CD = tl.load(k_from_CD), tl.load(v_from_CD)
        score_RC = tl.dot(q_RD, tl.trans(k_CD), input_precision="ieee")
        if MASKED:
            seen_RC = key_position_C <= position_R[:, None]
            if WINDOWED:
                seen_RC &= key_position_C + window > position_R[:, None]
            score_RC = tl.where(seen_RC, score_RC, float("-inf"))
        new_R = tl.maximum(top_R, tl.max(score_RC, 1) * scale)
        # A row may have seen nothing yet when its window begins in a later tile.
        base_R = tl.where(new_R == float("-inf"), 0.0, new_R) if WINDOWED else new_R
        weight_RC = tl.exp2(score_RC * scale - base_R[:, None])
        fade_R = tl.exp2(top_R - base_R)
        total_R = total_R * fade_R + tl.sum(weight_RC, 1)
        sum_RD = tl.dot(weight_RC.to(v_CD.dtype), v_CD, sum_RD * fade_R[:, None], input_precision="ieee")
        top_R = new_R
    return top_R, total_R, sum_RD
