"""Low-rank additions for few tokens on a GPU: two short launches, each program two memory accesses deep.

Once per step `plan_runs` lists tiles of up to 16 neighbouring tokens with the same adapter. A program of either product
reads the record of its tile, asks at once for everything that it needs, multiplies, and writes.

Shapes: T tokens, K input features, N output features, P parts, R rows of the arena, C chunks of input features, V tiles
of an adapter's rows, W rows of such a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from harmonia.kernels import gpu
from harmonia.kernels.lora_layout import LoraArena, LoraRuns, LoraTable
from harmonia.kernels.lora_triton import alignment, part_arguments, place_of_tile

_TILE = tl.constexpr(16)  # tokens; the least that tensor cores multiply
_FIELDS = tl.constexpr(4)  # first token, tokens and (from bit 8) further tiles of the program, first row, rows
_SLOTS_AHEAD = 16


class Choice(NamedTuple):
    """How the two products are cut up."""

    chunk: int
    """Input features of a program of the first product."""
    groups: int
    """Its warps: each sums a part of the chunk."""
    block_n: int
    """Output features of a program of the second product."""
    warps: int
    """Its warps."""
    overlap: bool
    """Start each launch while the one before it ends."""


def plan_runs(slots_T: Tensor, table: LoraTable) -> LoraRuns:
    """Tiles of neighbouring tokens with the same adapter, from slots that only the device needs to know."""
    num_tokens = len(slots_T)
    tiles_T4 = torch.empty(num_tokens, _FIELDS.value, dtype=torch.int32, device=slots_T.device)
    ahead = min(len(table.ranges_S2), _SLOTS_AHEAD) - 1
    programs = min(num_tokens, triton.cdiv(num_tokens, _TILE.value) + ahead)
    block_t = max(16, triton.next_power_of_2(num_tokens))
    _plan[(1,)](slots_T, table.ranges_S2, tiles_T4, num_tokens, programs, block_t)
    return LoraRuns(tiles_T4, programs, table.width, table.columns)


def add_low_rank(y_TN: Tensor, x_TK: Tensor, arena: LoraArena, runs: LoraRuns, choice: Choice | None = None) -> None:
    """y += scale * (x A^T) B, in place, in the columns of every part that a token's adapter may change."""
    choice = choice or choice_of(x_TK, arena)
    expand(y_TN, shrink(x_TK, arena, runs, choice), arena, runs, choice)


def choice_of(x_TK: Tensor, arena: LoraArena) -> Choice:
    """From the shape of the layer; the best of four on an H100 for 8, 64 and 256 tokens of Qwen3-8B's shapes."""
    num_in = x_TK.shape[1]
    overlap = x_TK.is_cuda and gpu.is_hopper(x_TK.device)
    if x_TK.dtype.itemsize > 2:
        return Choice(chunk=256, groups=4, block_n=64, warps=4, overlap=overlap)
    chunk = 512 if num_in <= 6144 else 1024
    block_n = 128 if sum(arena.sizes) <= 8192 else 256
    return Choice(chunk, 4, block_n, 4, overlap)


def shrink(x_TK: Tensor, arena: LoraArena, runs: LoraRuns, choice: Choice) -> Tensor:
    """scale * x A^T in fp32, in chunks that are still to be added, for tokens with an adapter: sums_CPVTW."""
    num_tokens, num_in = x_TK.shape
    num_parts, num_rows, _ = arena.a_PRK.shape
    x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
    levels = runs.columns // runs.width
    block_k = 64 if x_TK.dtype.itemsize == 2 else 16
    steps = choice.chunk // (choice.groups * block_k)
    num_chunks = triton.cdiv(num_in, choice.chunk)
    sums = x_TK.new_empty(num_chunks, num_parts, levels, num_tokens, runs.width, dtype=torch.float32)
    _shrink[(num_chunks * num_parts, levels, runs.programs)](
        *(x_TK, arena.a_PRK, arena.scales_PR, runs.tiles_T4, sums, num_tokens, num_in, x_TK.stride(0), num_rows),
        *(num_parts, runs.width, choice.groups, block_k, steps, num_in % choice.chunk == 0, choice.overlap),
        num_warps=choice.groups,
        num_stages=1,
        launch_pdl=choice.overlap,
    )
    return sums


def expand(y_TN: Tensor, sums_CPVTW: Tensor, arena: LoraArena, runs: LoraRuns, choice: Choice) -> None:
    """y += low B, in place."""
    num_chunks, num_parts, levels, num_tokens, width = sums_CPVTW.shape
    assert y_TN.stride(1) == 1, "output features of a token lie together"
    tiles_n = sum(triton.cdiv(size, choice.block_n) for size in arena.sizes)
    _expand[(tiles_n, runs.programs)](
        *(y_TN, sums_CPVTW, arena.b, runs.tiles_T4, num_tokens, y_TN.stride(0)),
        *(arena.a_PRK.shape[1], levels, *part_arguments(arena)),
        *(num_chunks, num_parts, width, choice.block_n, alignment(arena), choice.overlap),
        num_warps=choice.warps,
        num_stages=1,
        launch_pdl=choice.overlap,
    )


@triton.jit(do_not_specialize=["num_tokens", "programs"])
def _plan(slots_ptr, ranges_ptr, tiles_ptr, num_tokens, programs, BLOCK_T: tl.constexpr):
    t = tl.arange(0, BLOCK_T)
    slot = tl.load(slots_ptr + t, t < num_tokens, -1)
    before = tl.load(slots_ptr + t - 1, (t > 0) & (t < num_tokens), -1)
    begins = (slot >= 0) & ((slot != before) | (t % _TILE == 0))  # so tiles are few without looking back further
    first = tl.load(ranges_ptr + 2 * slot, begins, 0)
    rows = tl.load(ranges_ptr + 2 * slot + 1, begins, 0) - first
    is_tile = (begins & (rows > 0)).to(tl.int32)
    same = t < num_tokens
    size = same.to(tl.int32)
    for step in tl.static_range(1, _TILE):
        after = tl.load(slots_ptr + t + step, t + step < num_tokens, -1)
        same = same & (after == slot) & (t % _TILE + step < _TILE)
        size += same.to(tl.int32)
    tile, num_tiles = tl.cumsum(is_tile, 0) - 1, tl.sum(is_tile, 0)
    tile_ptr = tiles_ptr + tile * _FIELDS
    tl.store(tile_ptr, t, is_tile > 0)
    tl.store(tile_ptr + 1, size + (num_tiles - 1 - tile) // programs * 256, is_tile > 0)
    tl.store(tile_ptr + 2, first, is_tile > 0)
    tl.store(tile_ptr + 3, rows, is_tile > 0)
    tl.store(tiles_ptr + t * _FIELDS + 1, 0, (t >= num_tiles) & (t < num_tokens))  # the others are empty


@triton.jit
def _tile(tiles_ptr, tile, num_tokens):
    """First token, tokens, first row, rows and further tiles; no tokens beyond the last tile."""
    tile_ptr, is_tile = tiles_ptr + tile * _FIELDS, tile < num_tokens
    first_t, counts = tl.load(tile_ptr, is_tile, 0), tl.load(tile_ptr + 1, is_tile, 0)
    row, rows = tl.load(tile_ptr + 2, is_tile, 0), tl.load(tile_ptr + 3, is_tile, 0)
    return first_t, counts & 255, row, rows, (counts >> 8) & 255


@triton.jit(do_not_specialize=["num_tokens"])
def _shrink(
    x_ptr,
    a_ptr,
    scales_ptr,
    tiles_ptr,
    sums_ptr,
    num_tokens,
    num_in,
    x_stride,
    num_rows,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STEPS: tl.constexpr,
    EVEN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_wait()  # y, which the next launch reads before its own wait, is there from here on
        gdc_launch_dependents()
    tile = tl.program_id(2)
    first_t, size, row, rows, more = _tile(tiles_ptr, tile, num_tokens)
    chunk, part, column = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS, tl.program_id(1) * WIDTH
    # Axes: groups, which are the warps, tokens or rows, input features.
    t, w = tl.arange(0, _TILE)[None, :, None], tl.arange(0, WIDTH)[None, :, None]
    k = tl.arange(0, GROUPS)[:, None, None] * (BLOCK_K * STEPS) + tl.arange(0, BLOCK_K)[None, None, :]
    k += chunk * (GROUPS * STEPS * BLOCK_K)
    x_place, a_place = t * x_stride + k, w * num_in + k
    a_ptr += (part * num_rows + column).to(tl.int64) * num_in
    scales_ptr += part * num_rows + column
    low_t, low_w = tl.arange(0, _TILE)[:, None], tl.arange(0, WIDTH)[None, :]
    sums_ptr += (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * (num_tokens * WIDTH)
    sums_ptr += low_t * WIDTH + low_w
    for _ in tl.range(0, 1 + more, num_stages=1):  # surely once: addresses are made while the record is on its way
        tile += tl.num_programs(2)
        next_t, next_size, next_row, next_rows, _ = _tile(tiles_ptr, tile, num_tokens)
        if (size > 0) & (column < rows):
            x_block_ptr = x_ptr + first_t.to(tl.int64) * x_stride + x_place
            a_block_ptr = a_ptr + row.to(tl.int64) * num_in + a_place
            scale = tl.load(scales_ptr + row + low_w, column + low_w < rows, 0.0)
            low = tl.zeros((GROUPS, _TILE, WIDTH), tl.float32)
            for step in tl.range(0, STEPS, num_stages=STEPS + 1):
                is_x, is_a = t < size, column + w < rows
                if not EVEN:
                    inside = k + step * BLOCK_K < num_in
                    is_x, is_a = is_x & inside, is_a & inside
                x = tl.load(x_block_ptr + step * BLOCK_K, is_x, 0.0)
                a = tl.load(a_block_ptr + step * BLOCK_K, is_a, 0.0)
                low = tl.dot(x, tl.permute(a, (0, 2, 1)), low, input_precision="ieee")
            low = tl.where(scale != 0, tl.sum(low, 0) * scale, 0.0)  # rows that the part does not use hold anything
            tl.store(sums_ptr + first_t * WIDTH, low, (low_t < size) & (low_w < WIDTH))
        first_t, size, row, rows = next_t, next_size, next_row, next_rows


@triton.jit(do_not_specialize=["num_tokens"])
def _expand(
    y_ptr,
    sums_ptr,
    b_ptr,
    tiles_ptr,
    num_tokens,
    y_stride,
    num_rows,
    levels,
    START0,
    SIZE0,
    START1,
    SIZE1,
    START2,
    SIZE2,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    tile = tl.program_id(1)
    first_t, count, row, rows, more = _tile(tiles_ptr, tile, num_tokens)
    part, start, first_n, size, before = place_of_tile(
        tl.program_id(0), START0, SIZE0, START1, SIZE1, START2, SIZE2, PARTS, BLOCK_N, ALIGN
    )
    n, t, w = first_n + tl.arange(0, BLOCK_N)[None, :], tl.arange(0, _TILE)[:, None], tl.arange(0, WIDTH)
    is_n = n < size
    y_place, b_place = t * y_stride + n, w[:, None] * size + n
    y_ptr += start
    b_ptr += before * tl.cast(num_rows, tl.int64)
    chunk, low = tl.arange(0, triton.next_power_of_2(CHUNKS))[:, None], tl.arange(0, _TILE * WIDTH)[None, :]
    low_place = (chunk * PARTS + part) * levels * (num_tokens * WIDTH) + low
    for _ in tl.range(0, 1 + more, num_stages=1):
        tile += tl.num_programs(1)
        next_t, next_count, next_row, next_rows, _ = _tile(tiles_ptr, tile, num_tokens)
        if count > 0:
            y_block_ptr = y_ptr + first_t.to(tl.int64) * y_stride + y_place
            y = tl.load(y_block_ptr, (t < count) & is_n, 0.0)
            change = tl.zeros((_TILE, BLOCK_N), tl.float32)
            for column in tl.range(0, rows, WIDTH, num_stages=1):
                is_row = column + w < rows
                b_row_ptr = b_ptr + (row + column).to(tl.int64) * size
                if OVERLAP:
                    _prefetch(b_row_ptr, first_n, rows - column, size, WIDTH, BLOCK_N)
                    gdc_wait()
                low_ptr = sums_ptr + (column * num_tokens + first_t * WIDTH) + low_place
                sums = tl.load(low_ptr, (chunk < CHUNKS) & (low < count * WIDTH), 0.0)
                b = tl.load(b_row_ptr + b_place, is_row[:, None] & is_n, 0.0)  # last: its first use waits here
                if num_tokens > 0:  # always; the compiler would else wait for one load before it starts the next
                    low_TW = tl.reshape(tl.sum(sums, 0), (_TILE, WIDTH)).to(b.dtype)
                    change = tl.dot(low_TW, b, change, input_precision="ieee")
            tl.store(y_block_ptr, (y.to(tl.float32) + change).to(y_ptr.dtype.element_ty), (t < count) & is_n)
        first_t, count, row, rows = next_t, next_count, next_row, next_rows
    if OVERLAP:
        gdc_wait()  # also where there is nothing to do: what follows takes everything before as done


@triton.jit
def _prefetch(b_ptr, first_n, rows, size, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr):
    """Have rows of B brought to the L2 cache, a line of 128 bytes at a time, while the sums are not there yet."""
    line: tl.constexpr = 1024 // b_ptr.dtype.element_ty.primitive_bitwidth
    row = tl.minimum(tl.arange(0, WIDTH), rows - 1)[:, None]
    n = tl.minimum(first_n + tl.arange(0, BLOCK_N // line) * line, size - 1)[None, :]
    line_ptr = b_ptr + (row * size + n)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [line_ptr.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )
