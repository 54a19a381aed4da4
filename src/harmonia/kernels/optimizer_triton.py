"""AdamW on a GPU: 34 bytes a number in one pass, the rounded weights and the zeroed gradient included.

Shapes: P numbers, B blocks of them, each within one leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048
_ALIGNED = 16  # numbers: blocks that begin and end at multiples of so many are read in wide words
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def adamw_triton(
    flat: Sequence[Tensor], norm: Tensor, scale: Tensor, numbers: Sequence[float], leaves: Sequence[Tensor]
) -> None:
    """One launch for each type of leaves, usually one in all.

    flat: masters, gradients, means, squares, [P] each in fp32. The gradient counts times `scale`, and not at all unless
    `norm` is finite. numbers: lr over the means' correction, 1 - lr * wd, one over the root of the squares' correction,
    what the new gradient and its square count in their means, eps.
    """
    places = _Places(tuple((leaf.data_ptr(), leaf.numel(), leaf.dtype) for leaf in leaves))
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        table_B3, aligned = _table(places, dtype, norm.device)
        _adamw[(table_B3.shape[0],)](
            *(*flat, table_B3, norm, scale, *numbers, _TYPES[dtype], aligned, _BLOCK),
            num_warps=8,
        )


class _Places(tuple[tuple[int, int, torch.dtype], ...]):
    """(address, numbers, type) of each leaf."""

    __slots__ = ()


@lru_cache(maxsize=16)
def _table(places: _Places, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, bool]:
    """(first number, address in the leaf, numbers) of each block of the leaves of a type; whether all are aligned."""
    rows, first = [], 0
    for address, count, its in places:
        if its is dtype:
            starts = np.arange(0, count, _BLOCK)
            rows.append(np.stack((first + starts, address + starts * its.itemsize, np.minimum(count - starts, _BLOCK))))
        first += count
    table_3B = np.concatenate(rows, axis=1)
    aligned = not (table_3B[::2] % _ALIGNED).any() and not (table_3B[1] % (_ALIGNED * dtype.itemsize)).any()
    return torch.from_numpy(np.ascontiguousarray(table_3B.T)).to(device), aligned


@triton.jit
def _adamw(
    masters, gradients, means, squares, table, norm, scale, rate, kept, root, mean_share, square_share, eps,
    LEAF: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    table += 3 * tl.program_id(0)
    first, address, count = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    leaf = address.to(tl.pointer_type(LEAF))
    if ALIGNED:
        first, leaf, count = tl.multiple_of(first, 16), tl.multiple_of(leaf, 16), tl.multiple_of(count, 16)
    lanes = tl.arange(0, BLOCK)
    used = lanes < count
    places = first + lanes
    if tl.load(norm) < float("inf"):  # nor NaN
        gradient = tl.load(gradients + places, mask=used, other=0.0) * tl.load(scale)
        mean = tl.load(means + places, mask=used, other=0.0)
        square = tl.load(squares + places, mask=used, other=0.0)
        master = tl.load(masters + places, mask=used, other=0.0)
        mean += mean_share * (gradient - mean)
        square += square_share * (gradient * gradient - square)
        master = master * kept - rate * mean / (tl.sqrt(square) * root + eps)
        tl.store(means + places, mean, mask=used)
        tl.store(squares + places, square, mask=used)
        tl.store(masters + places, master, mask=used)
        tl.store(leaf + lanes, master.to(LEAF), mask=used)
    tl.store(gradients + places, tl.zeros((BLOCK,), tl.float32), mask=used)
