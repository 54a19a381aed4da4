"""Attention of one token a sequence over the paged cache on a GPU, the work split over the length of the cache.

Reading keys and values is all the work there is, so a program takes the query heads that share a key/value head as the
rows of its products. Splits are chosen from the size of the batch alone and a program finds its range of tokens on the
device, so that a captured graph serves any lengths. Partial results wait in scratch memory; the program of a sequence
that is done last adds them up, in the order of the splits.

Shapes: T tokens, S sequences, H query heads, G key/value heads, D head size, N blocks, P tokens per block; in kernels
R query heads that share keys, C keys of a tile, X splits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from harmonia.kernels import gpu
from harmonia.kernels.arrivals import MAX_TILES, arrival_counts

if TYPE_CHECKING:
    from harmonia.kernels.pages import PagedLayout

_MAX_SPLITS = 16
_MAX_MERGED = 1 << 14  # numbers that are merged at once, which are held in registers
_MIN_ROWS = 16  # of a product on tensor cores
_LOG2_E = 1.4426950408889634
_LOWEST = tl.constexpr(-1e30)
_GRAIN = tl.constexpr(16)  # splits are as long as a multiple of this


class DecodeChoice(NamedTuple):
    """How the kernel is compiled and split."""

    tile: int
    """Keys."""
    warps: int
    stages: int
    per_processor: int = 2
    """As many programs at most, where the work is split."""


_FEW_PAIRS = range(17, 65)
_FOR_FEW_PAIRS = DecodeChoice(16, warps=1, stages=5, per_processor=4)


def decode_attention(
    q_THD: Tensor,
    k_NPGD: Tensor,
    v_NPGD: Tensor,
    layout: PagedLayout,
    scale: float,
    window: int,
    *,
    choice: DecodeChoice | None = None,
    splits: int | None = None,
    out_THD: Tensor | None = None,
) -> Tensor:
    """Attention of the first `num_decodes` tokens: out_THD, of which the other rows are left as they are.

    `choice` and `splits` are for tuning.
    """
    sequences, heads, size = layout.num_decodes, q_THD.shape[1], q_THD.shape[2]
    kv_heads = k_NPGD.shape[2]
    sharing, padded = heads // kv_heads, max(16, triton.next_power_of_2(size))
    out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format) if out_THD is None else out_THD
    if sequences == 0:
        return out_THD
    choice = choice or decode_choice(sequences * kv_heads, padded, q_THD.dtype)
    if splits is None:
        most = _MAX_MERGED // (triton.next_power_of_2(sharing) * padded)
        splits = num_splits(sequences * kv_heads, choice.per_processor * gpu.num_processors(q_THD.device), most)
    partial, stats = _scratch(layout, q_THD, splits)
    arrived = arrival_counts(q_THD.device) if splits > 1 else None
    assert splits == 1 or sequences * kv_heads <= MAX_TILES, "few sequences are split"
    _decode[(kv_heads, sequences, splits)](
        *(q_THD, k_NPGD, v_NPGD, out_THD, partial, stats, arrived),
        *(layout.blocks_B, layout.block_starts_S, layout.context_lens_S, q_THD.stride(0), scale * _LOG2_E, window),
        *(kv_heads, sharing, max(_MIN_ROWS, triton.next_power_of_2(sharing)), triton.next_power_of_2(sharing)),
        *(size, padded, k_NPGD.shape[1], choice.tile, splits, window > 0),
        num_warps=choice.warps,
        num_stages=choice.stages,
    )
    return out_THD


def decode_choice(num_pairs: int, padded_size: int, dtype: torch.dtype) -> DecodeChoice:
    """For so many pairs of a sequence and a key/value head: tiles of 16 KB of keys and as much of values.

    Small tiles are faster for 64 pairs (12.1 us instead of 14.1 for 640 tokens of 128 numbers on an H100), and slower
    for 8, for 128 and for more.
    """
    if num_pairs in _FEW_PAIRS and padded_size <= 128 and dtype.itemsize == 2:
        return _FOR_FEW_PAIRS
    tile = max(16, min(128, (16384 // dtype.itemsize) // padded_size))
    return DecodeChoice(tile, warps=4, stages=3 if dtype.itemsize == 2 else 2)


def num_splits(num_pairs: int, max_programs: int, most: int = _MAX_SPLITS) -> int:
    """A power of two: as many as make no more programs than that."""
    splits = 1
    while 2 * splits <= min(most, _MAX_SPLITS) and 2 * splits * num_pairs <= max_programs:
        splits *= 2
    return splits


def _scratch(layout: PagedLayout, q_THD: Tensor, splits: int) -> tuple[Tensor | None, Tensor | None]:
    """(sums of values, maxima and sums of weights) of each split; one for all layers."""
    if splits == 1:
        return None, None
    heads, size = q_THD.shape[1:]
    key = ("decode", splits, heads, size)
    if key not in layout.derived:
        rows = layout.num_decodes * splits * heads
        partial = torch.empty(rows, size, dtype=torch.float32, device=q_THD.device)
        stats = torch.empty(rows, 2, dtype=torch.float32, device=q_THD.device)
        layout.derived[key] = (partial, stats)
    return layout.derived[key]


@triton.jit(do_not_specialize=["window"])
def _decode(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    partial_ptr,
    stats_ptr,
    arrived_ptr,
    blocks_ptr,
    block_starts_ptr,
    context_lens_ptr,
    q_stride,
    scale,
    window,
    G: tl.constexpr,
    SHARING: tl.constexpr,
    R: tl.constexpr,
    MERGED: tl.constexpr,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    C: tl.constexpr,
    X: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """One split of one sequence's context, for the heads that share keys; R and D are padded, MERGED is SHARING."""
    kv_head, sequence, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    stop = tl.load(context_lens_ptr + sequence)
    begin = tl.maximum(stop - window, 0) if WINDOWED else 0
    share = tl.cdiv(tl.cdiv(stop - begin, X), _GRAIN) * _GRAIN
    num_used = tl.cdiv(stop - begin, tl.maximum(share, 1))
    begin += split * share
    if (begin >= stop) & (split > 0):
        return
    if X > 1:
        stop = tl.minimum(stop, begin + share)
    row_R, d_D, key_C = tl.arange(0, R), tl.arange(0, D), tl.arange(0, C)
    has_row_R, has_d_D = row_R < SHARING, d_D < SIZE
    blocks_ptr += tl.load(block_starts_ptr + sequence)
    first_head = kv_head * SHARING
    q_RD = tl.load(
        q_ptr + sequence.to(tl.int64) * q_stride + (first_head + row_R[:, None]) * SIZE + d_D,
        mask=has_row_R[:, None] & has_d_D,
        other=0.0,
    )
    top_R = tl.full([R], float("-inf"), tl.float32)
    total_R = tl.zeros([R], tl.float32)
    sum_RD = tl.zeros([R, D], tl.float32)
    for start in range(begin, stop, C):
        position_C = start + key_C
        inside_C = position_C < stop
        block_C = tl.load(blocks_ptr + position_C // P, mask=inside_C, other=0)
        place_C = ((block_C * P + position_C % P).to(tl.int64) * G + kv_head) * SIZE
        k_CD = tl.load(k_ptr + place_C[:, None] + d_D, mask=inside_C[:, None] & has_d_D, other=0.0)
        v_CD = tl.load(v_ptr + place_C[:, None] + d_D, mask=inside_C[:, None] & has_d_D, other=0.0)
        score_RC = tl.dot(q_RD, tl.trans(k_CD), input_precision="ieee")
        score_RC = tl.where(inside_C, score_RC, float("-inf"))
        new_R = tl.maximum(top_R, tl.max(score_RC, 1) * scale)
        weight_RC = tl.exp2(score_RC * scale - new_R[:, None])
        fade_R = tl.exp2(top_R - new_R)
        total_R = total_R * fade_R + tl.sum(weight_RC, 1)
        sum_RD = tl.dot(weight_RC.to(v_CD.dtype), v_CD, sum_RD * fade_R[:, None], input_precision="ieee")
        top_R = new_R
    out_ptr += (sequence * (G * SHARING) + first_head).to(tl.int64) * SIZE
    into_R = (sequence * X + split) * (G * SHARING) + first_head + row_R
    if X > 1:  # noqa: SIM102  for the compiler: without, what follows would be compiled for one split too
        if num_used > 1:
            tl.store(partial_ptr + into_R[:, None].to(tl.int64) * SIZE + d_D, sum_RD, has_row_R[:, None] & has_d_D)
            tl.store(stats_ptr + 2 * into_R, top_R, has_row_R)
            tl.store(stats_ptr + 2 * into_R + 1, total_R, has_row_R)
            arrived_ptr += sequence * G + kv_head
            tl.debug_barrier()  # every thread's partial results are written before one of them says so
            if tl.atomic_add(arrived_ptr, 1, sem="acq_rel") == num_used - 1:
                tl.store(arrived_ptr, 0)  # for the next kernel
                first = sequence * X * (G * SHARING) + first_head
                _merge(partial_ptr, stats_ptr, out_ptr, first, num_used, G * SHARING, SHARING, MERGED, SIZE, D, X)
    if num_used <= 1:
        out_RD = sum_RD / tl.where(total_R > 0, total_R, 1.0)[:, None]  # a row that is padding sees nothing
        into_RD = out_ptr + row_R[:, None] * SIZE + d_D
        tl.store(into_RD, out_RD.to(out_ptr.dtype.element_ty), has_row_R[:, None] & has_d_D)


@triton.jit
def _merge(
    partial_ptr,
    stats_ptr,
    out_ptr,
    first,
    num_used,
    H: tl.constexpr,
    SHARING: tl.constexpr,
    R: tl.constexpr,
    SIZE: tl.constexpr,
    D: tl.constexpr,
    X: tl.constexpr,
):
    """Add up the splits of the heads that share keys; `first` is the row of the first head's first split."""
    row_R, split_X, d_D = tl.arange(0, R), tl.arange(0, X), tl.arange(0, D)
    here_RX = (row_R < SHARING)[:, None] & (split_X < num_used)
    from_RX = first + row_R[:, None] + split_X * H
    # Past the first-level cache, which does not see what other processors write.
    top_RX = tl.load(stats_ptr + 2 * from_RX, here_RX, other=_LOWEST, cache_modifier=".cg")
    total_RX = tl.load(stats_ptr + 2 * from_RX + 1, here_RX, other=0.0, cache_modifier=".cg")
    weight_RX = tl.where(here_RX, tl.exp2(top_RX - tl.max(top_RX, 1)[:, None]), 0.0)
    sum_RXD = tl.load(
        partial_ptr + from_RX[:, :, None].to(tl.int64) * SIZE + d_D,
        here_RX[:, :, None] & (d_D < SIZE),
        other=0.0,
        cache_modifier=".cg",
    )
    total_R = tl.where(row_R < SHARING, tl.sum(total_RX * weight_RX, 1), 1.0)
    sum_RD = tl.sum(sum_RXD * weight_RX[:, :, None], 1) / total_R[:, None]
    into_RD = out_ptr + row_R[:, None] * SIZE + d_D
    tl.store(into_RD, sum_RD.to(out_ptr.dtype.element_ty), (row_R < SHARING)[:, None] & (d_D < SIZE))
