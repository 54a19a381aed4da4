"""Draws on a GPU, without sorting and without asking the host.

A row of logits is cut into blocks, so that a single row still occupies the whole device: first the largest logit of
each block, then, where some row is drawn at random, the winner of each block's race, then the best of all blocks.

Between them, if some row is filtered, one program per row finds the least weight that stays. A weight is a probability
relative to the largest one, so it lies in (0, 1], where floats are ordered as their bits are: these are searched.
Blocks without a weight that could matter are not read any more, so that a small top_k costs little.

Shapes: R rows, V vocabulary, C blocks of the vocabulary; in kernels B tokens of a block, K blocks of a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from harmonia.kernels.splitmix import FACTORS, GOLDEN

_BLOCK = 512
_FEW_ROWS = 8
_FEW_ROWS_TILE, _TILE, _SEARCH_TILE = (2, 4), (8, 8), (8, 16)  # blocks that a program reads at once, and its warps

_GOLDEN = tl.constexpr(GOLDEN)
_FACTOR_0, _FACTOR_1 = tl.constexpr(FACTORS[0]), tl.constexpr(FACTORS[1])
_LEAST_BITS = tl.constexpr(1)  # of the smallest weight above 0
_BEYOND_BITS = tl.constexpr(0x3F800001)  # one more than those of the largest weight, 1
_LOST = tl.constexpr(-1.0)  # below every rate


def greedy_triton(logits_RV: Tensor) -> Tensor:
    """The likeliest token of each row, the lowest of equals: ids_R."""
    logits_RV, peaks_RC, places_RC = _peaks(logits_RV)
    return _best(peaks_RC, places_RC, logits_RV.shape[1])


def draw_triton(
    logits_RV: Tensor,
    temperature_R: Tensor,
    keys_R: Tensor,
    top_k_R: Tensor | None,
    top_p_R: Tensor | None,
    min_p_R: Tensor | None,
) -> Tensor:
    """Token of each row after the filters; the likeliest one where the temperature is 0: ids_R."""
    logits_RV, peaks_RC, places_RC = _peaks(logits_RV)
    rows, size = logits_RV.shape
    blocks = peaks_RC.shape[1]
    padded = triton.next_power_of_2(blocks)
    filters = top_k_R, top_p_R, min_p_R
    floor_R = None
    if rows and any(tensor is not None for tensor in filters):
        floor_R = torch.empty(rows, dtype=torch.float32, device=logits_RV.device)
        in_row, warps = _SEARCH_TILE
        _find_floors[(rows,)](
            *(logits_RV, peaks_RC, temperature_R, *filters, floor_R, torch.empty_like(places_RC)),
            *(size, logits_RV.stride(0), blocks, padded, in_row, _BLOCK, *(tensor is not None for tensor in filters)),
            num_warps=warps,
        )
    rates_RC, winners_RC = torch.empty_like(peaks_RC), torch.empty_like(places_RC)
    if rows:
        in_row, warps = _FEW_ROWS_TILE if rows <= _FEW_ROWS else _TILE
        programs = triton.cdiv(blocks, in_row)
        _race[(rows * programs,)](
            *(logits_RV, peaks_RC, places_RC, temperature_R, keys_R, floor_R, rates_RC, winners_RC),
            *(size, logits_RV.stride(0), blocks, programs, padded, in_row, _BLOCK, floor_R is not None),
            num_warps=warps,
        )
    return _best(rates_RC, winners_RC, size)


def _peaks(logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits with rows in one piece; of each block the largest and the first token that has it."""
    logits_RV = logits_RV if logits_RV.stride(1) == 1 else logits_RV.contiguous()
    rows, size = logits_RV.shape
    blocks = triton.cdiv(size, _BLOCK)
    peaks_RC = torch.empty(rows, blocks, dtype=torch.float32, device=logits_RV.device)
    places_RC = torch.empty(rows, blocks, dtype=torch.int32, device=logits_RV.device)
    if rows:
        in_row, warps = _FEW_ROWS_TILE if rows <= _FEW_ROWS else _TILE
        programs = triton.cdiv(blocks, in_row)
        _find_peaks[(rows * programs,)](
            *(logits_RV, peaks_RC, places_RC, size, logits_RV.stride(0), blocks, programs, in_row, _BLOCK),
            num_warps=warps,
        )
    return logits_RV, peaks_RC, places_RC


def _best(values_RC: Tensor, places_RC: Tensor, size: int) -> Tensor:
    rows, blocks = values_RC.shape
    ids_R = torch.empty(rows, dtype=torch.int64, device=values_RC.device)
    if rows:
        padded = triton.next_power_of_2(blocks)
        _best_block[(rows,)](values_RC, places_RC, ids_R, size, blocks, padded, num_warps=2)
    return ids_R


@triton.jit
def _find_peaks(logits, peaks, places, size, stride, blocks, programs, K: tl.constexpr, B: tl.constexpr):
    row = (tl.program_id(0) // programs).to(tl.int64)
    block_K = (tl.program_id(0) % programs) * K + tl.arange(0, K)
    logit_KB = _load_blocks(logits + row * stride, block_K, size, B)
    peak_K, place_K = tl.max(logit_KB, 1, return_indices=True, return_indices_tie_break_left=True)
    tl.store(peaks + row * blocks + block_K, peak_K, mask=block_K < blocks)
    tl.store(places + row * blocks + block_K, block_K * B + place_K, mask=block_K < blocks)


@triton.jit
def _best_block(values, places, ids, size, blocks, C: tl.constexpr):
    row, block_C = tl.program_id(0).to(tl.int64), tl.arange(0, C)
    value_C = tl.load(values + row * blocks + block_C, mask=block_C < blocks, other=-float("inf"))
    _, best = tl.max(value_C, 0, return_indices=True, return_indices_tie_break_left=True)
    # No number compares with NaN, so that even the place may be wrong; what is returned must be a token all the same.
    place = tl.load(places + row * blocks + tl.minimum(best, blocks - 1))
    tl.store(ids + row, tl.minimum(place, size - 1).to(tl.int64))


@triton.jit
def _race(
    logits, peaks, places, temperatures, keys, floors, rates, winners, size, stride, blocks, programs,
    C: tl.constexpr, K: tl.constexpr, B: tl.constexpr, FILTERS: tl.constexpr,
):  # fmt: skip
    """The token of each block that is first when each arrives after a waiting time of its rate; see `sample._race`."""
    row = (tl.program_id(0) // programs).to(tl.int64)
    block_K = (tl.program_id(0) % programs) * K + tl.arange(0, K)
    mask_K = block_K < blocks
    rate_K = tl.load(peaks + row * blocks + block_K, mask=mask_K, other=-float("inf"))
    winner_K = tl.load(places + row * blocks + block_K, mask=mask_K, other=0)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        block_C = tl.arange(0, C)
        largest = tl.max(tl.load(peaks + row * blocks + block_C, mask=block_C < blocks, other=-float("inf")), 0)
        inverse = 1.0 / temperature
        heaviest = tl.max(_weigh(rate_K, largest, inverse), 0)
        floor = 0.0
        if FILTERS:
            floor = tl.load(floors + row)
        rate_K = tl.full([K], _LOST, tl.float32)
        if heaviest >= floor:
            weight_KB = _weigh(_load_blocks(logits + row * stride, block_K, size, B), largest, inverse)
            token_KB = block_K[:, None] * B + tl.arange(0, B)[None, :]
            rate_KB = weight_KB / _waiting_times(tl.load(keys + row), token_KB)
            rate_KB = tl.where((weight_KB >= floor) & (weight_KB > 0), rate_KB, _LOST)
            rate_K, place_K = tl.max(rate_KB, 1, return_indices=True, return_indices_tie_break_left=True)
            winner_K = block_K * B + place_K
    tl.store(rates + row * blocks + block_K, rate_K, mask=mask_K)
    tl.store(winners + row * blocks + block_K, winner_K, mask=mask_K)


@triton.jit
def _load_blocks(logits, block_K, size, B: tl.constexpr):
    """Of a row; minus infinity beyond its end."""
    token_KB = block_K[:, None] * B + tl.arange(0, B)[None, :]
    return tl.load(logits + token_KB, mask=token_KB < size, other=-float("inf"))


@triton.jit
def _weigh(logit, largest, inverse):
    return tl.exp((logit - largest) * inverse)


@triton.jit
def _waiting_times(key, token):
    """Exponentially distributed numbers from a hash of the row's key and the token."""
    bits = key.to(tl.uint64) + (token + 1).to(tl.uint64) * _GOLDEN
    bits = (bits ^ (bits >> 30)) * _FACTOR_0
    bits = (bits ^ (bits >> 27)) * _FACTOR_1
    bits = bits ^ (bits >> 31)
    u = ((bits >> 32).to(tl.uint32).to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    # A constant below the least normal number of fp32 would turn everything into fp64.
    # -log(1 - u): by its series where 1 - u would lose digits, which is exact to fp32 up to there.
    series = 1 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6 + u * (1 / 7 + u * (1 / 8)))))))
    return tl.where(u < 0.1, u * series, -tl.log(tl.maximum(1 - u, 1.2e-38)))


@triton.jit
def _find_floors(
    logits, peaks, temperatures, top_ks, top_ps, min_ps, floors, listed, size, stride, blocks,
    C: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    HAS_TOP_K: tl.constexpr, HAS_TOP_P: tl.constexpr, HAS_MIN_P: tl.constexpr,
):  # fmt: skip
    """The least weight that stays in each row: an actual weight, or a number between it and the next lighter one."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures + row)
    floor = 0.0
    if temperature > 0:
        block_C = tl.arange(0, C)
        peak_C = tl.load(peaks + row * blocks + block_C, mask=block_C < blocks, other=-float("inf"))
        largest = tl.max(peak_C, 0)
        inverse = 1.0 / temperature
        peak_bits_C = _weigh(peak_C, largest, inverse).to(tl.int32, bitcast=True)
        row_logits, row_listed = logits + row * stride, listed + row * blocks
        low = tl.full([], _LEAST_BITS, tl.int32)
        if HAS_TOP_K:
            top_k = tl.load(top_ks + row)
            if top_k < size:
                target = tl.maximum(top_k, 1).to(tl.float32)
                low = _reached_by_peaks(peak_bits_C, low, target)
                low = _search(row_logits, row_listed, peak_bits_C, size, largest, inverse, low, target, True, C, K, B)
        if HAS_TOP_P:
            top_p = tl.load(top_ps + row)
            if top_p < 1:
                count = _list_blocks(row_listed, peak_bits_C, low, C)
                _, kept, _, _, _, _ = _upward(
                    row_logits, row_listed, count, size, largest, inverse, low, low, low, K, B
                )
                # All that is lighter than this weighs less than what is to be dropped.
                least = 0.999 * (1 - top_p) * kept / size
                low = tl.maximum(low, tl.minimum(least, 1.0).to(tl.int32, bitcast=True))
                target = tl.maximum(top_p * kept, 1e-30)  # the likeliest stays
                low = _search(row_logits, row_listed, peak_bits_C, size, largest, inverse, low, target, False, C, K, B)
        floor = low.to(tl.float32, bitcast=True)
        if HAS_MIN_P:
            floor = tl.maximum(floor, tl.load(min_ps + row))
    tl.store(floors + row, floor)


@triton.jit
def _reached_by_peaks(peak_bits_C, low, target):
    """Bits from which upward so many blocks have a weight, hence at least so many weights lie there."""
    high = tl.full([], _BEYOND_BITS, tl.int32)
    while high - low > 1:
        middle = low + (high - low) // 2
        reached = tl.sum(tl.where(peak_bits_C >= middle, 1.0, 0.0), 0) >= target
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return low


@triton.jit
def _search(
    logits, listed, peak_bits_C, size, largest, inverse, low, target,
    BY_NUMBER: tl.constexpr, C: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Bits from which upward the weights reach the target, by their number or by their sum, and beyond the next do not.

    Each round looks at three places between two that are known. It ends when at most one weight lies between these, or
    none of the places is new; equal weights are not taken apart.
    """
    high = tl.full([], _BEYOND_BITS, tl.int32)
    number_low = tl.full([], 0.0, tl.float32) + size
    number_high = tl.full([], 0.0, tl.float32)
    goes_on = (high - low > 1) & (number_low > 1)
    while goes_on:
        step = tl.maximum((high - low) // 4, 1)
        a = low + step
        b = tl.minimum(a + step, high - 1)
        c = tl.minimum(b + step, high - 1)
        count = _list_blocks(listed, peak_bits_C, a, C)
        number_a, sum_a, number_b, sum_b, number_c, sum_c = _upward(
            logits, listed, count, size, largest, inverse, a, b, c, K, B
        )
        if BY_NUMBER:
            reach_a, reach_b, reach_c = number_a >= target, number_b >= target, number_c >= target
        else:
            reach_a, reach_b, reach_c = sum_a >= target, sum_b >= target, sum_c >= target
        high = tl.where(reach_c, high, tl.where(reach_b, c, tl.where(reach_a, b, a)))
        above = tl.where(reach_b, number_c, tl.where(reach_a, number_b, number_a))
        number_high = tl.where(reach_c, number_high, above)
        low = tl.where(reach_c, c, tl.where(reach_b, b, tl.where(reach_a, a, low)))
        number_low = tl.where(reach_c, number_c, tl.where(reach_b, number_b, tl.where(reach_a, number_a, number_low)))
        goes_on = (high - low > 1) & (number_low - number_high > 1)
        if BY_NUMBER:
            goes_on &= number_low != target
    return low


@triton.jit
def _list_blocks(listed, peak_bits_C, low, C: tl.constexpr):
    """Note the blocks that have a weight from `low` upward; how many they are."""
    has_C = (peak_bits_C >= low).to(tl.int32)
    tl.debug_barrier()  # the list may still be read
    tl.store(listed + tl.cumsum(has_C, 0) - 1, tl.arange(0, C), mask=has_C > 0)
    tl.debug_barrier()
    return tl.sum(has_C, 0)


@triton.jit
def _upward(logits, listed, count, size, largest, inverse, a, b, c, K: tl.constexpr, B: tl.constexpr):
    """Number and sum of the weights of the listed blocks from each of three bit patterns upward."""
    number_a_KB = tl.zeros([K, B], tl.float32)
    sum_a_KB = tl.zeros([K, B], tl.float32)
    number_b_KB = tl.zeros([K, B], tl.float32)
    sum_b_KB = tl.zeros([K, B], tl.float32)
    number_c_KB = tl.zeros([K, B], tl.float32)
    sum_c_KB = tl.zeros([K, B], tl.float32)
    for start in range(0, count, K):
        place_K = start + tl.arange(0, K)
        block_K = tl.load(listed + place_K, mask=place_K < count, other=size)  # lies beyond the end
        weight_KB = _weigh(_load_blocks(logits, block_K, size, B), largest, inverse)
        bits_KB = weight_KB.to(tl.int32, bitcast=True)
        number_a_KB += tl.where(bits_KB >= a, 1.0, 0.0)
        sum_a_KB += tl.where(bits_KB >= a, weight_KB, 0.0)
        number_b_KB += tl.where(bits_KB >= b, 1.0, 0.0)
        sum_b_KB += tl.where(bits_KB >= b, weight_KB, 0.0)
        number_c_KB += tl.where(bits_KB >= c, 1.0, 0.0)
        sum_c_KB += tl.where(bits_KB >= c, weight_KB, 0.0)
    number_a, sum_a = tl.sum(tl.sum(number_a_KB, 1), 0), tl.sum(tl.sum(sum_a_KB, 1), 0)
    number_b, sum_b = tl.sum(tl.sum(number_b_KB, 1), 0), tl.sum(tl.sum(sum_b_KB, 1), 0)
    number_c, sum_c = tl.sum(tl.sum(number_c_KB, 1), 0), tl.sum(tl.sum(sum_c_KB, 1), 0)
    return number_a, sum_a, number_b, sum_b, number_c, sum_c
