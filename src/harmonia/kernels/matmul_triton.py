"""Products with a dense weight on a GPU, for few tokens and for results that do not depend on the batch.

For few tokens a product is as fast as its weight is read: many small tiles, deep pipelines, and sums over parts of the
input features where there would be fewer tiles than processors. Parts are always added in the same order.

Shapes: T tokens, K input features, N output features, P rows of an output tile, Q its columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from harmonia.kernels.activation import Activation
from harmonia.kernels.arrivals import MAX_TILES, arrival_counts
from harmonia.kernels.matmul_choices import Choice

_PART_ALIGNMENT = 128
_GROUP = tl.constexpr(8)  # tiles of tokens that take turns over the same rows of the weight, which the L2 cache holds


def product(
    x_TK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    choice: Choice,
    *,
    out_dtype: torch.dtype | None = None,
    gate: Activation | None = None,
) -> Tensor:
    """x W^T + b, summed in fp32; with `gate` activation(gate) * up of the two halves of its features."""
    num_tokens, num_in = x_TK.shape
    num_out = weight_NK.shape[0]
    y_TN = x_TK.new_empty(num_tokens, num_out // 2 if gate else num_out, dtype=out_dtype or x_TK.dtype)
    if y_TN.numel() == 0:
        return y_TN
    x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
    assert weight_NK.stride(1) == 1, "rows of a weight lie together"
    if gate and choice.block_n == 1:
        choice = choice._replace(block_n=2)
    if choice.block_t == 1:
        _row_product[(triton.cdiv(num_out, choice.block_n) * num_tokens,)](
            *(x_TK, weight_NK, bias_N, y_TN, num_tokens, num_out, num_in),
            *(x_TK.stride(0), weight_NK.stride(0), y_TN.stride(0)),
            *(choice.block_n, choice.block_k, num_in % choice.block_k == 0, gate or ""),
            num_warps=choice.warps,
            num_stages=choice.stages,
        )
        return y_TN
    part_size, num_parts = _parts(num_in, choice)
    tiles_t, tiles_n = triton.cdiv(num_tokens, choice.block_t), triton.cdiv(num_out, choice.block_n)
    spread = choice.spread and 1 < num_parts and tiles_t * tiles_n <= MAX_TILES
    sums = arrived = None
    if spread:
        tile = choice.block_t * choice.block_n
        sums = torch.empty(num_parts * tiles_t * tiles_n * tile, dtype=torch.float32, device=x_TK.device)
        arrived = arrival_counts(x_TK.device)
    _product[(tiles_t * tiles_n, num_parts if spread else 1)](
        *(x_TK, weight_NK, bias_N, y_TN, sums, arrived, num_tokens, num_out, num_in, part_size, num_parts),
        *(x_TK.stride(0), weight_NK.stride(0), y_TN.stride(0)),
        *(choice.block_t, choice.block_n, choice.block_k, "spread" if spread else "turns" if num_parts > 1 else "one"),
        *(choice.swap, num_in % choice.block_k == 0, gate or ""),
        num_warps=choice.warps,
        num_stages=choice.stages,
    )
    return y_TN


def _parts(num_in: int, choice: Choice) -> tuple[int, int]:
    """(input features of a part, parts): depends on the sizes of the weight alone."""
    align = max(_PART_ALIGNMENT, choice.block_k)
    size = triton.cdiv(triton.cdiv(num_in, choice.parts), align) * align
    return size, triton.cdiv(num_in, size)


@triton.jit(do_not_specialize=["num_tokens", "num_parts"])
def _product(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    sums_ptr,
    arrived_ptr,
    num_tokens,
    num_out,
    num_in,
    part_size,
    num_parts,
    x_stride,
    weight_stride,
    y_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
    GATE: tl.constexpr,
):
    tiles_t = tl.cdiv(num_tokens, BLOCK_T)
    tiles_n = tl.cdiv(num_out, BLOCK_N)
    tile = tl.program_id(0)
    in_group = tile % (_GROUP * tiles_n)
    first_t = tile // (_GROUP * tiles_n) * _GROUP
    group_t = tl.minimum(tiles_t - first_t, _GROUP)
    t = (first_t + in_group % group_t) * BLOCK_T + tl.arange(0, BLOCK_T)
    has_token = t < num_tokens
    tile_n = in_group // group_t
    n = _weight_rows(tile_n, num_out, BLOCK_N, GATE)
    x_ptr += t.to(tl.int64)[:, None] * x_stride
    weight_ptr += n.to(tl.int64)[:, None] * weight_stride
    is_last = True
    if PARTS == "one":
        total = _sum_part(x_ptr, weight_ptr, has_token, 0, num_in, BLOCK_T, BLOCK_N, BLOCK_K, SWAP, EVEN)
    elif PARTS == "turns":
        total = tl.zeros((BLOCK_N, BLOCK_T) if SWAP else (BLOCK_T, BLOCK_N), tl.float32)
        for part in tl.range(num_parts, num_stages=1):
            first = part * part_size
            last = tl.minimum(first + part_size, num_in)
            total += _sum_part(x_ptr, weight_ptr, has_token, first, last, BLOCK_T, BLOCK_N, BLOCK_K, SWAP, EVEN)
    else:
        first = tl.program_id(1) * part_size
        last = tl.minimum(first + part_size, num_in)
        total = _sum_part(x_ptr, weight_ptr, has_token, first, last, BLOCK_T, BLOCK_N, BLOCK_K, SWAP, EVEN)
        sums_ptr += tile.to(tl.int64) * (num_parts * BLOCK_T * BLOCK_N)
        total, is_last = _gather(total, sums_ptr, arrived_ptr + tile, has_token, num_parts, BLOCK_T, BLOCK_N, SWAP)
    if is_last:
        row_ptr = y_ptr + t.to(tl.int64)[:, None] * y_stride
        sums = tl.trans(total) if SWAP else total
        _finish(sums, bias_ptr, n, row_ptr, has_token[:, None], tile_n, num_out, BLOCK_T, BLOCK_N, GATE)


@triton.jit
def _weight_rows(tile_n, num_out, BLOCK_N: tl.constexpr, GATE: tl.constexpr):
    """The weight's rows that make a tile; with GATE rows i of both halves are its columns 2 i and 2 i + 1."""
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    n = column
    if GATE != "":
        n = column // 2 + column % 2 * (num_out // 2)
    return tl.where(column < num_out, n, 0)


@triton.jit
def _gather(
    total,
    sums_ptr,
    arrived_ptr,
    has_token,
    num_parts,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SWAP: tl.constexpr,
):
    """(sum of all parts of a tile, whether this program has it): the last that is done adds them, in their order."""
    if SWAP:
        place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_T + tl.arange(0, BLOCK_T)[None, :]
        mask = has_token[None, :]
    else:
        place = tl.arange(0, BLOCK_T)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        mask = has_token[:, None]
    tl.store(sums_ptr + tl.program_id(1) * (BLOCK_T * BLOCK_N) + place, total, mask)
    tl.debug_barrier()  # every thread has stored before one says so
    is_last = tl.atomic_add(arrived_ptr, 1, sem="acq_rel") == num_parts - 1
    if is_last:
        tl.store(arrived_ptr, 0)
        total = tl.zeros_like(total)
        for part in tl.range(num_parts, num_stages=1):
            total += tl.load(sums_ptr + part * (BLOCK_T * BLOCK_N) + place, mask, 0.0, cache_modifier=".cg")
    return total, is_last


@triton.jit
def _finish(
    total,
    bias_ptr,
    n,
    y_ptr,
    mask,
    tile_n,
    num_out,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GATE: tl.constexpr,
):
    """Round and write a tile of sums, or what the gate makes of it."""
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n).to(tl.float32)[None, :]
    if GATE == "":
        column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        tl.store(y_ptr + column, total.to(y_ptr.dtype.element_ty), mask & (column < num_out))
    else:
        half: tl.constexpr = BLOCK_N // 2
        gate, up = tl.split(tl.reshape(total, (BLOCK_T, half, 2)))
        column = tile_n * half + tl.arange(0, half)[None, :]
        out = (_activate(gate, GATE) * up).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + column, out, mask & (column < num_out // 2))


@triton.jit
def _sum_part(
    x_ptr,
    weight_ptr,
    has_token,
    first,
    last,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The product over a range of input features, block after block: [N, T] with SWAP, else [T, N].

    SWAP multiplies W x^T, so that tiles of 64 features or more use the instructions of whole warp groups (wgmma)
    however few the tokens are.
    """
    total = tl.zeros((BLOCK_N, BLOCK_T) if SWAP else (BLOCK_T, BLOCK_N), tl.float32)
    in_block = tl.arange(0, BLOCK_K)
    x_ptr += first + in_block[None, :]
    weight_ptr += first + in_block[None, :]
    for k in range(first, last, BLOCK_K):
        if EVEN:
            x = tl.load(x_ptr, has_token[:, None], 0.0)
            weight = tl.load(weight_ptr, eviction_policy="evict_first")
        else:
            inside = (k + in_block < last)[None, :]
            x = tl.load(x_ptr, has_token[:, None] & inside, 0.0)
            weight = tl.load(weight_ptr, inside, 0.0, eviction_policy="evict_first")
        if SWAP:
            total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
        else:
            total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
        x_ptr += BLOCK_K
        weight_ptr += BLOCK_K
    return total


@triton.jit
def _activate(gate, GATE: tl.constexpr):
    if GATE == "silu":
        return gate * tl.sigmoid(gate)
    inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)  # 2 sqrt(2 / pi)
    return gate * tl.sigmoid(inner)


@triton.jit
def _row_product(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    num_tokens,
    num_out,
    num_in,
    x_stride,
    weight_stride,
    y_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    GATE: tl.constexpr,
):
    """One token times some rows of the weight, without tensor cores. Tokens take turns: the cache then has the rows."""
    token, tile_n = tl.program_id(0) % num_tokens, tl.program_id(0) // num_tokens
    n = _weight_rows(tile_n, num_out, BLOCK_N, GATE)
    x_ptr += token.to(tl.int64) * x_stride
    weight_ptr += n.to(tl.int64)[:, None] * weight_stride
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for first in range(0, num_in, BLOCK_K):
        if EVEN:
            x = tl.load(x_ptr + first + k)
            weight = tl.load(weight_ptr + first + k[None, :], eviction_policy="evict_first")
        else:
            inside = first + k < num_in
            x = tl.load(x_ptr + first + k, inside, 0.0)
            weight = tl.load(weight_ptr + first + k[None, :], inside[None, :], 0.0, eviction_policy="evict_first")
        total += weight.to(tl.float32) * x.to(tl.float32)[None, :]
    y_ptr += token.to(tl.int64) * y_stride
    sums = tl.sum(total, axis=1)[None, :]
    _finish(sums, bias_ptr, n, y_ptr, True, tile_n, num_out, 1, BLOCK_N, GATE)
