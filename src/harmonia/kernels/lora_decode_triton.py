"""Low-rank additions for few tokens on a GPU: both products in one launch, since launches are what they cost.

Programs of the second product wait until those of the first, which are ahead of them, have said that they are done.
Shapes: T tokens, K input features, N output features, P parts, R rows of the arena, X tiles, C chunks, L rows of the
longest range, W rows of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from harmonia.kernels.arrivals import MAX_TILES, arrival_counts
from harmonia.kernels.lora_layout import LoraArena, LoraRoutes
from harmonia.kernels.lora_triton import (
    TILE_FIELDS,
    UNROLLED,
    add_change,
    alignment,
    chunk_size,
    expand,
    feature_block,
    low_sums,
    part_arguments,
    place_of_tile,
    shrink,
    token_block,
)

_FEW_TOKENS = 256
_WIDE = 8192


def add_low_rank(
    y_TN: Tensor,
    x_TK: Tensor,
    arena: LoraArena,
    routes: LoraRoutes,
    *,
    invariant: bool = False,
    overlap: bool = False,
) -> None:
    """y += scale * (x A^T) B, in place, in the columns of every part that a token's adapter changes.

    `invariant`: with the same bits in any batch. `overlap`: see `matmul_triton.product`.
    """
    if x_TK.shape[0] <= _FEW_TOKENS:
        _add_at_once(y_TN, x_TK, arena, routes, invariant=invariant, overlap=overlap)
    else:
        low = shrink(x_TK, arena, routes, invariant=invariant, overlap=overlap)
        expand(y_TN, low, arena, routes, overlap=overlap)


def _add_at_once(
    y_TN: Tensor,
    x_TK: Tensor,
    arena: LoraArena,
    routes: LoraRoutes,
    *,
    invariant: bool,
    overlap: bool,
) -> None:
    """Both products in one launch: programs of the second wait until those of the first, ahead of them, are done."""
    num_tokens, num_in = x_TK.shape
    num_parts, num_rows, _ = arena.a_PRK.shape
    assert y_TN.stride(1) == 1, "output features of a token lie together"
    x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
    width, columns, max_tiles = routes.width, routes.columns, routes.max_tiles
    block_k, chunk = feature_block(x_TK), chunk_size(num_in)
    block_t, block_s = token_block(num_tokens, invariant=invariant), triton.next_power_of_2(num_parts) * width
    block_n = 128 if sum(arena.sizes) > _WIDE and y_TN.dtype.itemsize == 2 else 64
    num_chunks, tiles_t = triton.cdiv(num_in, chunk), triton.cdiv(num_tokens, block_t)
    tiles_n = sum(triton.cdiv(size, block_n) for size in arena.sizes)
    sums_CTPL = x_TK.new_empty(num_chunks, num_tokens, num_parts, columns, dtype=torch.float32)
    _add[(tiles_t * (max_tiles * num_chunks + tiles_n),)](
        *(x_TK, y_TN, arena.a_PRK, arena.b, arena.scales_PR, routes.slots_T, routes.tiles_X4, sums_CTPL),
        *(arrival_counts(x_TK.device)[MAX_TILES - 2 :], num_tokens, num_in, x_TK.stride(0), y_TN.stride(0)),
        *(num_rows, columns, max_tiles, tiles_n, *part_arguments(arena)),
        *(chunk, num_chunks, num_parts, width, block_s, block_t, block_n, block_k),
        *(columns == width, min(UNROLLED, max_tiles), alignment(arena), num_in % chunk == 0 and chunk % block_k == 0),
        *(x_TK.is_cuda and x_TK.dtype.itemsize == 2, overlap),
        num_warps=4 if block_t * max(block_s, block_n) <= 64 * 64 else 8,
        num_stages=3 if x_TK.dtype.itemsize == 2 else 2,
        launch_pdl=overlap,
    )


@triton.jit
def _add(
    x_ptr,
    y_ptr,
    a_ptr,
    b_ptr,
    scales_ptr,
    slots_ptr,
    tiles_ptr,
    sums_ptr,
    done_ptr,
    num_tokens,
    num_in,
    x_stride,
    y_stride,
    num_rows,
    columns,
    max_tiles,
    tiles_n,
    START0,
    SIZE0,
    START1,
    SIZE1,
    START2,
    SIZE2,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ONE_LEVEL: tl.constexpr,
    UNROLL: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    PREFETCH: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    program = tl.program_id(0)
    tiles_t = tl.cdiv(num_tokens, BLOCK_T)
    num_low = tiles_t * max_tiles * CHUNKS
    if program < num_low:
        chunk = program % CHUNKS
        first = chunk * CHUNK
        tile, first_t = program // CHUNKS % max_tiles, program // (CHUNKS * max_tiles) * BLOCK_T
        # fmt: off
        low_sums(
            x_ptr, a_ptr, slots_ptr, tiles_ptr, sums_ptr + chunk * (num_tokens * PARTS * columns), tile, first_t,
            first, tl.minimum(first + CHUNK, num_in), num_tokens, num_in, x_stride, num_rows, columns, CHUNK,
            PARTS, WIDTH, BLOCK_S, BLOCK_T, BLOCK_K, True, EVEN,
        )
        # fmt: on
        tl.debug_barrier()  # all threads have stored before one says so
        tl.atomic_add(done_ptr, 1, sem="release")
    else:
        tile = program - num_low
        part, start, first_n, size, before = place_of_tile(
            tile % tiles_n, START0, SIZE0, START1, SIZE1, START2, SIZE2, PARTS, BLOCK_N, ALIGN
        )
        n = first_n + tl.arange(0, BLOCK_N)
        first_t = tile // tiles_n * BLOCK_T
        t = first_t + tl.arange(0, BLOCK_T)
        slots = tl.load(slots_ptr + t, t < num_tokens, -1)
        b_ptr += before * num_rows
        if PREFETCH:
            _prefetch_rows(b_ptr + first_n, tiles_ptr, size, WIDTH, BLOCK_N, UNROLL)
        while tl.atomic_cas(done_ptr, num_low, num_low, sem="acquire") != num_low:
            pass
        if tl.max(slots, 0) >= 0:
            add_change(
                y_ptr + start,
                sums_ptr + part * columns,
                b_ptr,
                scales_ptr + part * num_rows,
                tiles_ptr,
                slots,
                first_t,
                n,
                size,
                num_tokens,
                y_stride,
                columns,
                CHUNKS,
                PARTS,
                WIDTH,
                BLOCK_T,
                BLOCK_N,
                ONE_LEVEL,
                UNROLL,
            )
        if tl.atomic_add(done_ptr + 1, 1, sem="acq_rel") == tiles_t * tiles_n - 1:  # for the next launch
            tl.store(done_ptr, 0)
            tl.store(done_ptr + 1, 0)


@triton.jit
def _prefetch_rows(b_ptr, tiles_ptr, size, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr):
    """Bring the rows of B that the first tiles need to the L2 cache, a line of 128 bytes at a time."""
    count = tl.load(tiles_ptr)
    line = 64 * tl.arange(0, BLOCK_N // 64)
    for index in tl.static_range(UNROLL):
        tile = tl.minimum(index, tl.maximum(count - 1, 0))
        tile_ptr = tiles_ptr + (1 + tile) * TILE_FIELDS
        first, stop = tl.load(tile_ptr + 1, count > 0, 0), tl.load(tile_ptr + 2, count > 0, 0)
        row = tl.where(first + tl.arange(0, WIDTH) < stop, first + tl.arange(0, WIDTH), first)
        line_ptr = b_ptr + row.to(tl.int64)[:, None] * size + line[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [line_ptr.to(tl.int64)], tl.int32, is_pure=False, pack=1
        )
