"""Gradients of the low-rank additions of several adapters on a GPU, each large tensor read once.

A pass over dy gives dlow = scale dy B^T and dB = scale low^T dy; a pass over x and dx gives dx += dlow A and
dA = dlow^T x. The work is cut into items: some tokens of one adapter with one tile of its rows. Items write partial
sums in fp32, which are added in the order of the items: results are the same in every run.

Shapes: T tokens, K input features, N output features of all parts, P parts, R rows of the arena, L rows of the longest
range, W rows of a tile, X tiles, I items, J tiles of output features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from harmonia.kernels.lora_layout import LoraArena, LoraRoutes, LoraSegment, LoraTable
from harmonia.kernels.lora_triton import alignment, part_arguments, place_of_tile, shrink

_ITEM_TOKENS = 512
_ITEM_FIELDS = tl.constexpr(5)  # first token, end, first row, end of the slot's rows, first column of the sums
_SUMMED = 1024


class GradItems(NamedTuple):
    """How the backward pass of a batch is cut up; the same for every linear layer."""

    items_I5: Tensor
    """By level (which tile of its adapter it works on), then by slot, then by token."""
    runs_X2: Tensor
    """Items of each tile: first and end. Tiles are ordered by slot, then by row."""
    levels: tuple[tuple[int, int], ...]
    """Items of each level: first and end. Those of one level change different rows of dx."""
    tiles: dict[int, tuple[int, int]]
    """Tiles of each slot: first and end."""


class LoraGradients(NamedTuple):
    """Of all tiles, in fp32."""

    a_XPWK: Tensor
    b_XWN: Tensor


def grad_items(segments: Sequence[LoraSegment], table: LoraTable, routes: LoraRoutes) -> GradItems:
    """Cut up the tokens of these segments."""
    width = routes.width
    spans: dict[int, list[tuple[int, int]]] = {}
    for segment in segments:
        for start in range(segment.start, segment.stop, _ITEM_TOKENS):
            spans.setdefault(segment.slot, []).append((start, min(start + _ITEM_TOKENS, segment.stop)))
    ranges = {slot: table.ranges[slot] for slot in spans}
    counts = {slot: -(-len(rows) // width) for slot, rows in ranges.items()}
    tiles, num_tiles = {}, 0
    for slot, count in counts.items():
        tiles[slot] = num_tiles, num_tiles + count
        num_tiles += count
    items: list[tuple[int, ...]] = []
    runs, levels = [(0, 0)] * num_tiles, []
    for level in range(max(counts.values(), default=0)):
        first_of_level = len(items)
        for slot, rows in ranges.items():
            if level < counts[slot]:
                first = len(items)
                row = rows.start + level * width
                items += [(start, stop, row, rows.stop, level * width) for start, stop in spans[slot]]
                runs[tiles[slot][0] + level] = first, len(items)
        levels.append((first_of_level, len(items)))
    numbers = torch.tensor([*(n for item in items for n in item), *(n for run in runs for n in run)], dtype=torch.int32)
    numbers = numbers.to(routes.slots_T.device, non_blocking=True)
    split = len(items) * _ITEM_FIELDS.value
    return GradItems(numbers[:split].view(-1, 5), numbers[split:].view(-1, 2), tuple(levels), tiles)


def lora_gradients(
    x_TK: Tensor | None,
    dy_TN: Tensor,
    dx_TK: Tensor | None,
    arena: LoraArena,
    routes: LoraRoutes,
    items: GradItems,
) -> LoraGradients | None:
    """Add what passes through the adapters to `dx_TK` in place; gradients of A and B where `x_TK` is given."""
    low = None
    if x_TK is not None:
        x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
        low = shrink(x_TK, arena, routes, apart=False).sums_CTPL
    dlow_TPL, b_IWN = _grad_low(dy_TN, low, arena, routes, items)
    a_IPWK = _grad_inputs(x_TK, dx_TK, dlow_TPL, arena, routes.width, items)
    if a_IPWK is None or b_IWN is None:
        return None
    return LoraGradients(_sum_runs(a_IPWK, items), _sum_runs(b_IWN, items))


def _grad_low(
    dy_TN: Tensor, low_1TPL: Tensor | None, arena: LoraArena, routes: LoraRoutes, items: GradItems
) -> tuple[Tensor, Tensor | None]:
    """dlow in the type of dy, and what each item adds to dB."""
    num_tokens, num_parts = dy_TN.shape[0], len(arena.sizes)
    num_rows, num_out = arena.a_PRK.shape[1], sum(arena.sizes)
    num_items = items.items_I5.shape[0]
    half = dy_TN.dtype.itemsize == 2
    block_n, block_t = (512, 32) if half else (128, 32)
    tiles_n = tuple(triton.cdiv(size, block_n) for size in arena.sizes)
    columns = routes.columns
    down_JTL = dy_TN.new_empty(sum(tiles_n), num_tokens, columns, dtype=torch.float32)
    b_IWN = None if low_1TPL is None else dy_TN.new_empty(num_items, routes.width, num_out, dtype=torch.float32)
    _grad_low_kernel[(sum(tiles_n), num_items)](
        *(dy_TN, low_1TPL, arena.b, arena.scales_PR, items.items_I5, down_JTL, b_IWN, num_tokens, dy_TN.stride(0)),
        *(num_rows, columns, num_out, *part_arguments(arena)),
        *(num_parts, routes.width, block_t, block_n, alignment(arena), low_1TPL is not None),
        num_warps=8 if half else 4,
        num_stages=3 if half else 2,
    )
    dlow_TPL = dy_TN.new_empty(num_tokens, num_parts, columns)
    size = num_tokens * columns
    _add_tiles[(triton.cdiv(size, _SUMMED), num_parts)](
        *(down_JTL, dlow_TPL, size, columns, *part_arguments(arena), num_parts, block_n, _SUMMED)
    )
    return dlow_TPL, b_IWN


def _grad_inputs(
    x_TK: Tensor | None, dx_TK: Tensor | None, dlow_TPL: Tensor, arena: LoraArena, width: int, items: GradItems
) -> Tensor | None:
    """What each item adds to dA; adds to dx in place."""
    num_parts, num_rows, num_in = arena.a_PRK.shape
    block_s = triton.next_power_of_2(num_parts) * width
    half = dlow_TPL.dtype.itemsize == 2
    block_k, block_t = (128, 64) if half else (64, 32)
    a_IPWK = None
    if x_TK is not None:
        a_IPWK = x_TK.new_empty(items.items_I5.shape[0], num_parts, width, num_in, dtype=torch.float32)
    for first, end in items.levels:
        _grad_inputs_kernel[(triton.cdiv(num_in, block_k), end - first)](
            *(x_TK, dx_TK, dlow_TPL, arena.a_PRK, arena.scales_PR, items.items_I5, a_IPWK, first, num_in),
            *(0 if x_TK is None else x_TK.stride(0), 0 if dx_TK is None else dx_TK.stride(0)),
            *(num_rows, dlow_TPL.shape[2], num_parts, width, block_s, block_t, block_k),
            *(dx_TK is not None, x_TK is not None),
            num_warps=4 if block_s <= 64 else 8,
            num_stages=3 if half else 2,
        )
    return a_IPWK


def _sum_runs(parts: Tensor, items: GradItems) -> Tensor:
    """The sum of each tile's items."""
    num_tiles = items.runs_X2.shape[0]
    sums = parts.new_empty(num_tiles, *parts.shape[1:])
    size = parts[0].numel()
    _sum_runs_kernel[(triton.cdiv(size, _SUMMED), num_tiles)](parts, sums, items.runs_X2, size, _SUMMED)
    return sums


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["items_ptr"])
def _grad_low_kernel(
    dy_ptr,
    low_ptr,
    b_ptr,
    scales_ptr,
    items_ptr,
    down_ptr,
    db_ptr,
    num_tokens,
    dy_stride,
    num_rows,
    columns,
    num_out,
    START0,
    SIZE0,
    START1,
    SIZE1,
    START2,
    SIZE2,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
    TRAIN: tl.constexpr,
):
    part, start, first_n, size, before = place_of_tile(
        tl.program_id(0), START0, SIZE0, START1, SIZE1, START2, SIZE2, PARTS, BLOCK_N, ALIGN
    )
    item = tl.program_id(1)
    items_ptr += item * _ITEM_FIELDS
    token, last = tl.load(items_ptr), tl.load(items_ptr + 1)
    first_row, stop_row = tl.load(items_ptr + 2), tl.load(items_ptr + 3)
    column = tl.load(items_ptr + 4) // WIDTH * WIDTH  # as it is; so that the compiler knows
    n = first_n + tl.arange(0, BLOCK_N)
    w = tl.arange(0, WIDTH)
    row = first_row + w
    scale = tl.load(scales_ptr + part * num_rows + row, row < stop_row, 0.0)
    b_mask = (scale != 0)[:, None] & (n < size)[None, :]
    b_ptr += before * num_rows + row.to(tl.int64)[:, None] * size + n[None, :]
    b_NW = tl.trans(tl.load(b_ptr, b_mask, 0.0))
    total = tl.zeros((WIDTH, BLOCK_N), tl.float32)
    dy_ptr += start + n[None, :]
    down_ptr += tl.program_id(0).to(tl.int64) * num_tokens * columns + column + w[None, :]
    for first in range(token, last, BLOCK_T):
        t = (first + tl.arange(0, BLOCK_T)).to(tl.int64)
        is_token = (t < last)[:, None]
        dy = tl.load(dy_ptr + t[:, None] * dy_stride, is_token & (n < size)[None, :], 0.0)
        down = tl.dot(dy, b_NW, input_precision="ieee") * scale[None, :]
        tl.store(down_ptr + t[:, None] * columns, down, is_token)
        if TRAIN:
            place = (t[:, None] * PARTS + part) * columns + column + w[None, :]
            low = tl.load(low_ptr + place, is_token, 0.0)
            total = tl.dot(tl.trans(low.to(dy.dtype)), dy, total, input_precision="ieee")
    if TRAIN:
        db_ptr += (item.to(tl.int64) * WIDTH + w[:, None]) * num_out + before + n[None, :]
        mask = (w < WIDTH)[:, None] & (n < size)[None, :]
        tl.store(db_ptr, total * scale[:, None], mask)


@triton.jit(do_not_specialize=["size"])
def _add_tiles(
    down_ptr,
    dlow_ptr,
    size,
    columns,
    START0,
    SIZE0,
    START1,
    SIZE1,
    START2,
    SIZE2,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum over the tiles of output features of one part, for all tokens; without an adapter it is not read."""
    part = tl.program_id(1)
    tile, stop = 0, tl.cdiv(SIZE0, BLOCK_N)
    if part >= 1:
        tile, stop = stop, stop + tl.cdiv(SIZE1, BLOCK_N)
    if part >= 2:
        tile, stop = stop, stop + tl.cdiv(SIZE2, BLOCK_N)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    down_ptr += place + tile * size
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(tile, stop):
        total += tl.load(down_ptr, place < size, 0.0)
        down_ptr += size
    out = (place // columns * PARTS + part) * columns + place % columns
    tl.store(dlow_ptr + out, total.to(dlow_ptr.dtype.element_ty), place < size)


@triton.jit(do_not_specialize=["first_item"], do_not_specialize_on_alignment=["items_ptr"])
def _grad_inputs_kernel(
    x_ptr,
    dx_ptr,
    dlow_ptr,
    a_ptr,
    scales_ptr,
    items_ptr,
    da_ptr,
    first_item,
    num_in,
    x_stride,
    dx_stride,
    num_rows,
    columns,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ENTERED: tl.constexpr,
    TRAIN: tl.constexpr,
):
    item = first_item + tl.program_id(1)
    items_ptr += item * _ITEM_FIELDS
    token, last = tl.load(items_ptr), tl.load(items_ptr + 1)
    first_row, stop_row = tl.load(items_ptr + 2), tl.load(items_ptr + 3)
    column = tl.load(items_ptr + 4) // WIDTH * WIDTH  # as it is; so that the compiler knows
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    s = tl.arange(0, BLOCK_S)
    part = s // WIDTH
    row = part * num_rows + first_row + s % WIDTH
    is_row = (part < PARTS) & (first_row + s % WIDTH < stop_row)
    is_row = tl.load(scales_ptr + row, is_row, 0.0) != 0
    a = tl.load(a_ptr + row.to(tl.int64)[:, None] * num_in + k[None, :], is_row[:, None] & (k < num_in)[None, :], 0.0)
    total = tl.zeros((BLOCK_S, BLOCK_K), tl.float32)
    for first in range(token, last, BLOCK_T):
        t = (first + tl.arange(0, BLOCK_T)).to(tl.int64)
        mask = (t < last)[:, None] & (k < num_in)[None, :]
        place = (t[:, None] * PARTS + part[None, :]) * columns + column + (s % WIDTH)[None, :]
        dlow = tl.load(dlow_ptr + place, (t < last)[:, None] & (part < PARTS)[None, :], 0.0)
        if TRAIN:
            x = tl.load(x_ptr + t[:, None] * x_stride + k[None, :], mask, 0.0)
            total = tl.dot(tl.trans(dlow), x, total, input_precision="ieee")
        if ENTERED:
            dx = tl.load(dx_ptr + t[:, None] * dx_stride + k[None, :], mask, 0.0)
            dx = dx.to(tl.float32) + tl.dot(dlow, a, input_precision="ieee")
            tl.store(dx_ptr + t[:, None] * dx_stride + k[None, :], dx.to(dx_ptr.dtype.element_ty), mask)
    if TRAIN:
        place = ((item.to(tl.int64) * PARTS + part[:, None]) * WIDTH + (s % WIDTH)[:, None]) * num_in + k[None, :]
        tl.store(da_ptr + place, total, (part < PARTS)[:, None] & (k < num_in)[None, :])


@triton.jit(do_not_specialize_on_alignment=["runs_ptr"])
def _sum_runs_kernel(parts_ptr, sums_ptr, runs_ptr, size, BLOCK: tl.constexpr):
    tile = tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, end = tl.load(runs_ptr + 2 * tile), tl.load(runs_ptr + 2 * tile + 1)
    parts_ptr += first.to(tl.int64) * size + place
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(first, end):
        total += tl.load(parts_ptr, place < size, 0.0)
        parts_ptr += size
    tl.store(sums_ptr + tile.to(tl.int64) * size + place, total, place < size)
