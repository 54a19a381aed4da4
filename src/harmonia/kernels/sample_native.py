"""Drawing tokens on the CPU, compiled: a pass or two over each row where sorting it would cost a hundred.

A filter keeps what is at least as likely as some token. The weight of that token is found by bisection over the bits of
positive floats, which order as the numbers do. Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harmonia.kernels import native
from harmonia.kernels.native import kernel
from harmonia.kernels.native_code import (
    bits_of_float,
    exp,
    float32,
    float32s,
    float64,
    float_of_bits,
    int32,
    int32s,
    int64s,
    part,
    share,
    uint64,
)
from harmonia.kernels.splitmix import FACTORS, GOLDEN

# Unsigned throughout: numba makes a float of a signed and an unsigned number.
_GOLDEN = np.uint64(GOLDEN)
_FACTORS = (np.uint64(FACTORS[0]), np.uint64(FACTORS[1]))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_THIRTY_TWO = np.uint64(32)
_TO_UNIT = np.float32(2.0**-32)
_LEAST = np.float32(2.0**-33)
_BINADE = 1 << 23
_TOKENS_PER_THREAD = 50_000


def draw_native(
    logits_RV: Tensor,
    temperature_R: Tensor,
    keys_R: Tensor,
    top_k_R: Tensor | None,
    top_p_R: Tensor | None,
    min_p_R: Tensor | None,
) -> Tensor:
    """Token of each row after the filters; the likeliest one where the temperature is 0."""
    logits_RV = logits_RV.contiguous()
    rows, size = logits_RV.shape
    ids_R = torch.empty(rows, dtype=torch.int64)
    threads = native.threads_for(logits_RV.numel(), _TOKENS_PER_THREAD)
    scratch = torch.empty(threads, 2 * size)
    settings = temperature_R, keys_R, top_k_R, top_p_R, min_p_R
    addresses = (0 if tensor is None else tensor.data_ptr() for tensor in settings)
    _draw_rows.run(threads, logits_RV.data_ptr(), ids_R.data_ptr(), scratch.data_ptr(), rows, size, *addresses)
    return ids_R


@kernel("qqqqqqqqqq")
def _draw_rows(arguments: int, thread: int, num_threads: int) -> None:
    logits, ids, scratch, rows, size, temperature, keys, top_k, top_p, min_p = int64s(arguments, 10)
    weights = scratch + 8 * thread * size
    weight_V, bits_V, few_V = float32s(weights, size), int32s(weights, size), int32s(weights + 4 * size, size)
    first, stop = share(rows, thread, num_threads)
    for row in range(first, stop):
        logits_V = float32s(logits + 4 * row * size, size)
        largest = _largest(logits_V)
        heat = float32s(temperature, rows)[row]
        if heat == 0:
            int64s(ids, rows)[row] = _first_equal(logits_V, largest)
            continue
        _weigh(logits_V, largest, float32(1) / heat, weight_V)
        floor = float32(0)
        if top_k != 0 and int64s(top_k, rows)[row] < size:
            count = float64(int64s(top_k, rows)[row])
            floor = _floor(bits_V, few_V, int32(1), count, True)
        if top_p != 0 and float32s(top_p, rows)[row] < 1:
            kept, share_kept = _total(weight_V, floor), float64(float32s(top_p, rows)[row])
            # What is lighter than this weighs less than the part to be dropped, all together.
            least = max(floor, float32(0.999 * (1 - share_kept) * kept / size))
            floor = _floor(bits_V, few_V, bits_of_float(least), share_kept * kept, False)
        if min_p != 0:
            floor = max(floor, float32s(min_p, rows)[row])  # the largest weight is 1
        int64s(ids, rows)[row] = _race(weight_V, floor, int64s(keys, rows)[row])


@part
def _largest(logits_V: Any) -> float:
    largest = logits_V[0]
    for v in range(len(logits_V)):
        largest = logits_V[v] if logits_V[v] > largest else largest
    return largest


@part
def _first_equal(logits_V: Any, value: float) -> int:
    for v in range(len(logits_V)):
        if logits_V[v] == value:
            return v
    return 0


@part
def _weigh(logits_V: Any, largest: float, inverse_heat: float, weight_V: Any) -> None:
    """Probabilities relative to the largest; exactly 0 for what was masked or is too rare to ever be drawn."""
    for v in range(len(logits_V)):
        x = (logits_V[v] - largest) * inverse_heat
        weight_V[v] = exp(x) if x > float32(-80) else float32(0)


@part
def _total(weight_V: Any, floor: float) -> float:
    total = float64(0)
    for v in range(len(weight_V)):
        total += float64(weight_V[v] if weight_V[v] >= floor else float32(0))
    return total


@part
def _floor(bits_V: Any, few_V: Any, low: int, target: float, by_count: bool) -> float:
    """The largest weight such that all weights from it upward reach the target, as a number or as a sum."""
    high = int32(0x3F800000)  # the largest weight, 1
    above = float64(0)
    candidates_V, count = bits_V, len(bits_V)
    compact = False
    while low < high:
        if not compact and high - low < _BINADE:
            compact = True
            count = _keep_between(bits_V, low, high, few_V)
            candidates_V = few_V
        middle = low + (high - low) // int32(2)
        reached = _measure(candidates_V, count, middle, high, by_count)
        if above + reached >= target:
            low = middle + int32(1)
        else:
            above += reached
            high = middle
    return float_of_bits(high)


@part
def _measure(bits_V: Any, count: int, above: int, upto: int, by_count: bool) -> float:
    total = float64(0)
    if by_count:
        number = int32(0)
        for v in range(count):
            number += int32(1) if above < bits_V[v] <= upto else int32(0)
        total = float64(number)
    else:
        for v in range(count):
            total += float64(float_of_bits(bits_V[v]) if above < bits_V[v] <= upto else float32(0))
    return total


@part
def _keep_between(bits_V: Any, low: int, high: int, few_V: Any) -> int:
    count = 0
    for v in range(len(bits_V)):
        few_V[count] = bits_V[v]
        count += 1 if low <= bits_V[v] <= high else 0
    return count


@part
def _race(weight_V: Any, floor: float, key: int) -> int:
    """The token that is first when each arrives after a waiting time of this rate; see `sample._race`."""
    best, winner = float32(0), 0
    for v in range(len(weight_V)):
        weight = weight_V[v]
        # No uniform number is below 2**-33, so this one cannot win.
        if weight < floor or weight <= best * _LEAST:
            continue
        bits = _mix(uint64(key) + uint64(v + 1) * _GOLDEN)
        uniform = (float32(bits >> _THIRTY_TWO) + float32(0.5)) * _TO_UNIT
        # A waiting time is at least its uniform number, which spares most logarithms.
        if weight <= best * uniform:
            continue
        rate = float32(weight / -math.log1p(-float64(uniform)))
        if rate > best:
            best, winner = rate, v
    return winner


@part
def _mix(bits: Any) -> Any:
    bits = (bits ^ (bits >> _SHIFTS[0])) * _FACTORS[0]
    bits = (bits ^ (bits >> _SHIFTS[1])) * _FACTORS[1]
    return bits ^ (bits >> _SHIFTS[2])
