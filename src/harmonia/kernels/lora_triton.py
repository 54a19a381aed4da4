"""Low-rank additions of several adapters on a GPU, to all parts of a linear layer at once.

Every token has a slot (or -1), every slot a range of rows of the arena, and `plan_tiles` lists the rows of the slots
that a batch uses in tiles of `width` rows. A program multiplies tokens with one tile and skips tiles that none of its
tokens uses: ranks are padded in registers only, and a token's sums do not depend on its neighbours.

The sum over input features runs in chunks that are added in order. For few tokens each chunk is summed by a program
of its own, and whoever reads the sums adds the chunks. Unless sums must be `invariant`, few tokens are left to
`lora_decode_triton`.

Shapes: T tokens, K input features, N output features, P parts, R rows of the arena, S slots, X tiles, C chunks, L rows
of the longest range, W rows of a tile.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from harmonia.kernels import gpu
from harmonia.kernels.lora_layout import LoraArena, LoraRoutes, LoraTable

_TILE_FIELDS = tl.constexpr(4)  # slot, first row, end of the slot's rows, first column of the sums
_MAX_PARTS = 3
_FULL_TILE = 64  # tokens; the tile of invariant mode at any number of tokens
_UNROLLED = 4  # tiles whose rows are read at the same time


class LowSums(NamedTuple):
    """x A^T of every token with its own adapter, in fp32, as chunks that are still to be added."""

    sums_CTPL: Tensor
    block_t: int


def plan_tiles(slots_T: Tensor, table: LoraTable) -> Tensor:
    """[number of tiles, 0, 0, 0], then four numbers for each tile that a token uses; room for all that there can be."""
    num_slots, width = table.ranges_S2.shape[0], table.width
    most = num_slots + table.num_rows // width
    tiles_X4 = torch.empty(1 + most, _TILE_FIELDS.value, dtype=torch.int32, device=slots_T.device)
    _plan[(1,)](
        *(slots_T, table.ranges_S2, tiles_X4, slots_T.shape[0], num_slots),
        *(width, min(1024, max(16, triton.next_power_of_2(slots_T.shape[0]))), triton.next_power_of_2(num_slots)),
    )
    return tiles_X4


def add_low_rank(y_TN: Tensor, x_TK: Tensor, arena: LoraArena, routes: LoraRoutes, *, invariant: bool = False) -> None:
    """y += scale * (x A^T) B, in place, in the columns of every part that a token's adapter changes.

    `invariant`: with the same bits in any batch.
    """
    expand(y_TN, shrink(x_TK, arena, routes, invariant=invariant), arena, routes)


def shrink(
    x_TK: Tensor,
    arena: LoraArena,
    routes: LoraRoutes,
    *,
    invariant: bool = False,
    apart: bool = True,
) -> LowSums:
    """x A^T for tokens with an adapter; the other rows of the result are not written.

    `apart`: leave chunks to be added by the reader, unless there are programs enough without that.
    """
    num_tokens, num_in = x_TK.shape
    num_parts, num_rows, _ = arena.a_PRK.shape
    width, columns, max_tiles = routes.width, routes.columns, routes.max_tiles
    x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
    block_t = _token_block(num_tokens, invariant=invariant)
    block_s, block_k = triton.next_power_of_2(num_parts) * width, _feature_block(x_TK)
    tiles_t, chunk = triton.cdiv(num_tokens, block_t), _chunk_size(num_in)
    num_chunks = triton.cdiv(num_in, chunk)
    apart = apart and tiles_t * max_tiles < gpu.num_processors(x_TK.device)
    sums = x_TK.new_empty(num_chunks if apart else 1, num_tokens, num_parts, columns, dtype=torch.float32)
    _shrink[(tiles_t, max_tiles, num_chunks if apart else 1)](
        *(
            x_TK,
            arena.a_PRK,
            routes.slots_T,
            routes.tiles_X4,
            sums,
            num_tokens,
            num_in,
            x_TK.stride(0),
            num_rows,
            columns,
        ),
        *(chunk, num_parts, width, block_s, block_t, block_k),
        *(apart, num_in % chunk == 0 and chunk % block_k == 0),
        num_warps=4 if block_t * block_s <= 64 * 64 else 8,
        num_stages=5 if x_TK.dtype.itemsize == 2 else 2,
    )
    return LowSums(sums, block_t)


def expand(y_TN: Tensor, low: LowSums, arena: LoraArena, routes: LoraRoutes) -> None:
    """y += scale * low B, in place."""
    num_chunks, num_tokens, num_parts, columns = low.sums_CTPL.shape
    assert y_TN.stride(1) == 1, "output features of a token lie together"
    block_n = 128 if y_TN.dtype.itemsize == 2 else 64
    tiles_n = sum(triton.cdiv(size, block_n) for size in arena.sizes)
    width, unrolled = routes.width, min(_UNROLLED, routes.max_tiles)
    _expand[(tiles_n, triton.cdiv(num_tokens, low.block_t))](
        *(y_TN, low.sums_CTPL, arena.b, arena.scales_PR, routes.slots_T, routes.tiles_X4, num_tokens, y_TN.stride(0)),
        *(arena.scales_PR.shape[1], columns, *part_arguments(arena)),
        *(num_chunks, num_parts, width, low.block_t, block_n, columns == width, unrolled, alignment(arena)),
        num_warps=4 if low.block_t * block_n <= 64 * 64 else 8,
        num_stages=1,
    )


def _token_block(num_tokens: int, *, invariant: bool) -> int:
    """Tokens of a program's tile."""
    return _FULL_TILE if invariant else min(_FULL_TILE, max(16, triton.next_power_of_2(num_tokens)))


def _feature_block(x_TK: Tensor) -> int:
    """Input features of one step of a product."""
    return 64 if x_TK.dtype.itemsize == 2 else 32


def _chunk_size(num_in: int) -> int:
    """Input features that are summed at once, from the size of the weight alone."""
    return 512 if num_in <= 6144 else 1024


def part_arguments(arena: LoraArena) -> tuple[int, ...]:
    """(first column, size) of three parts, those that are not there empty."""
    assert len(arena.sizes) <= _MAX_PARTS, "fused projections have three parts at most"
    found = [number for pair in zip(arena.starts, arena.sizes, strict=True) for number in pair]
    return (*found, *(0,) * (2 * _MAX_PARTS - len(found)))


def alignment(arena: LoraArena) -> int:
    """What the parts' first columns and sizes are multiples of, up to 16."""
    return math.gcd(16, *arena.starts, *arena.sizes)


@triton.jit(do_not_specialize=["num_tokens"])
def _plan(
    slots_ptr,
    ranges_ptr,
    tiles_ptr,
    num_tokens,
    num_slots,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    slot = tl.arange(0, BLOCK_S)
    used = tl.zeros((BLOCK_S,), tl.int32)
    for start in range(0, num_tokens, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        slots = tl.load(slots_ptr + t, t < num_tokens, -1)
        used = tl.maximum(used, tl.max((slots[:, None] == slot[None, :]).to(tl.int32), axis=0))
    known = (slot < num_slots) & (used > 0)
    first = tl.load(ranges_ptr + 2 * slot, known, 0)
    stop = tl.load(ranges_ptr + 2 * slot + 1, known, 0)
    count = (stop - first + WIDTH - 1) // WIDTH
    place = 1 + tl.cumsum(count, 0) - count
    tl.store(tiles_ptr, tl.sum(count, 0))
    for index in range(tl.max(count, 0)):
        tile_ptr = tiles_ptr + (place + index) * _TILE_FIELDS
        tl.store(tile_ptr, slot, index < count)
        tl.store(tile_ptr + 1, first + index * WIDTH, index < count)
        tl.store(tile_ptr + 2, stop, index < count)
        tl.store(tile_ptr + 3, slot * 0 + index * WIDTH, index < count)


@triton.jit(do_not_specialize=["num_tokens"])
def _shrink(
    x_ptr,
    a_ptr,
    slots_ptr,
    tiles_ptr,
    sums_ptr,
    num_tokens,
    num_in,
    x_stride,
    num_rows,
    columns,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    APART: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The sums over a range of input features of those tokens whose adapter the tile belongs to, for all parts."""
    first = tl.program_id(2) * CHUNK
    stop = num_in
    if APART:
        stop = tl.minimum(first + CHUNK, num_in)
        sums_ptr += tl.program_id(2) * (num_tokens * PARTS * columns)  # with few tokens only: 32 bits do
    tile, first_t = tl.program_id(1), tl.program_id(0) * BLOCK_T
    if tile < tl.load(tiles_ptr):
        tile_ptr = tiles_ptr + (1 + tile) * _TILE_FIELDS
        t = tl.arange(0, BLOCK_T)
        mine = tl.load(slots_ptr + first_t + t, first_t + t < num_tokens, -1) == tl.load(tile_ptr)
        if tl.max(mine.to(tl.int32), 0) > 0:
            s = tl.arange(0, BLOCK_S)
            part = s // WIDTH
            row = tl.load(tile_ptr + 1) + s % WIDTH
            is_row = (part < PARTS) & (row < tl.load(tile_ptr + 2))
            in_block = tl.arange(0, BLOCK_K)
            row_64 = tl.cast(first_t, tl.int64)  # offsets inside a tile have 32 bits
            x_block_ptr = x_ptr + row_64 * x_stride + first + (t[:, None] * x_stride + in_block[None, :])
            a_block_ptr = a_ptr + (part * num_rows + row).to(tl.int64)[:, None] * num_in + in_block[None, :] + first
            chunk = tl.zeros((BLOCK_T, BLOCK_S), tl.float32)
            total = tl.zeros((BLOCK_T, BLOCK_S), tl.float32)
            for k in range(first, stop, BLOCK_K):
                if EVEN:
                    x = tl.load(x_block_ptr, mine[:, None], 0.0)
                    a = tl.load(a_block_ptr, is_row[:, None], 0.0)
                else:
                    inside = (k + in_block < stop)[None, :]
                    x = tl.load(x_block_ptr, mine[:, None] & inside, 0.0)
                    a = tl.load(a_block_ptr, is_row[:, None] & inside, 0.0)
                chunk = tl.dot(x, tl.trans(a), chunk, input_precision="ieee")
                if not APART:
                    ends = (k + BLOCK_K) % CHUNK == 0
                    total = tl.where(ends, total + chunk, total)
                    chunk = tl.where(ends, 0.0, chunk)
                x_block_ptr += BLOCK_K
                a_block_ptr += BLOCK_K
            place = (t[:, None] * PARTS + part[None, :]) * columns + (s % WIDTH)[None, :]
            mask = mine[:, None] & (part < PARTS)[None, :]
            column = tl.load(tile_ptr + 3) // WIDTH * WIDTH  # as it is; so that the compiler knows
            sums_row_ptr = sums_ptr + row_64 * (PARTS * columns) + column
            tl.store(sums_row_ptr + place, total + chunk, mask)


@triton.jit
def place_of_tile(
    tile, START0, SIZE0, START1, SIZE1, START2, SIZE2, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, ALIGN: tl.constexpr
):
    """Of a tile of output features: part, where that begins in y, first feature in it, its size, features before it."""
    part = 0
    start, size, before = START0, SIZE0, 0
    if PARTS > 1:
        tiles = tl.cdiv(SIZE0, BLOCK_N)
        if tile >= tiles:
            part, start, size, before = 1, START1, SIZE1, SIZE0
            tile -= tiles
            if PARTS > 2:
                tiles = tl.cdiv(SIZE1, BLOCK_N)
                if tile >= tiles:
                    part, start, size, before = 2, START2, SIZE2, SIZE0 + SIZE1
                    tile -= tiles
    # Behind a branch it is not known what these are multiples of, and loads would be one element wide.
    start, size, before = start // ALIGN * ALIGN, size // ALIGN * ALIGN, before // ALIGN * ALIGN
    return part, start, tile * BLOCK_N, size, before


@triton.jit
def _added_chunks(sums_ptr, mask, num_tokens, columns, CHUNKS: tl.constexpr, PARTS: tl.constexpr):
    low = tl.load(sums_ptr, mask, 0.0, cache_modifier=".cg")
    for chunk in tl.static_range(1, CHUNKS):
        low += tl.load(sums_ptr + chunk * (num_tokens * PARTS * columns), mask, 0.0, cache_modifier=".cg")
    return low


@triton.jit(do_not_specialize=["num_tokens"])
def _expand(
    y_ptr,
    sums_ptr,
    b_ptr,
    scales_ptr,
    slots_ptr,
    tiles_ptr,
    num_tokens,
    y_stride,
    num_rows,
    columns,
    START0,
    SIZE0,
    START1,
    SIZE1,
    START2,
    SIZE2,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ONE_LEVEL: tl.constexpr,
    UNROLL: tl.constexpr,
    ALIGN: tl.constexpr,
):
    part, start, first_n, size, before = place_of_tile(
        tl.program_id(0), START0, SIZE0, START1, SIZE1, START2, SIZE2, PARTS, BLOCK_N, ALIGN
    )
    n = first_n + tl.arange(0, BLOCK_N)
    first_t = tl.program_id(1) * BLOCK_T
    t = tl.arange(0, BLOCK_T)
    slots = tl.load(slots_ptr + first_t + t, first_t + t < num_tokens, -1)
    if tl.max(slots, 0) < 0:
        return
    y_ptr += start
    sums_ptr += part * columns
    b_ptr += before * num_rows
    scales_ptr += part * num_rows
    w = tl.arange(0, WIDTH)
    is_n = n < size
    row_64 = tl.cast(first_t, tl.int64)  # offsets inside a tile have 32 bits
    sums_ptr += row_64 * (PARTS * columns) + (t[:, None] * (PARTS * columns) + w[None, :])
    y_ptr += row_64 * y_stride + (t[:, None] * y_stride + n[None, :])
    has_adapter = slots >= 0
    y = tl.load(y_ptr, has_adapter[:, None] & is_n[None, :], 0.0)
    all_low = tl.zeros((BLOCK_T, WIDTH), tl.float32)
    if ONE_LEVEL:  # the sums of all adapters at once, not one after another
        mask = has_adapter[:, None] & (w < WIDTH)[None, :]
        all_low = _added_chunks(sums_ptr, mask, num_tokens, columns, CHUNKS, PARTS)
    change = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    changed = tl.zeros((BLOCK_T,), tl.int32)
    count = tl.load(tiles_ptr)
    for first in tl.range(0, count, UNROLL, num_stages=1):
        for index in tl.static_range(UNROLL):  # their loads are on their way together
            is_tile = first + index < count
            tile_ptr = tiles_ptr + (1 + first + index) * _TILE_FIELDS
            mine = slots == tl.load(tile_ptr, is_tile, -2)
            row = tl.load(tile_ptr + 1, is_tile, 0) + w
            stop = tl.load(tile_ptr + 2, is_tile, 0) * tl.max(mine.to(tl.int32), 0)
            scale = tl.load(scales_ptr + row, row < stop, 0.0)
            row_ptr = b_ptr + row.to(tl.int64)[:, None] * size
            b = tl.load(row_ptr + n[None, :], (scale != 0)[:, None] & is_n[None, :], 0.0)
            mask = mine[:, None] & (scale != 0)[None, :]
            low = all_low
            if not ONE_LEVEL:
                low_ptr = sums_ptr + tl.load(tile_ptr + 3, is_tile, 0)
                low = _added_chunks(low_ptr, mask, num_tokens, columns, CHUNKS, PARTS)
            low = tl.where(mask, low * scale[None, :], 0.0).to(b.dtype)
            change = tl.dot(low, b, change, input_precision="ieee")
            changed += mine.to(tl.int32) * tl.max((scale != 0).to(tl.int32), 0)
    tl.store(y_ptr, (y.to(tl.float32) + change).to(y_ptr.dtype.element_ty), (changed > 0)[:, None] & is_n[None, :])
