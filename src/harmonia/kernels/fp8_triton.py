"""Products in e4m3 on a GPU, of activations that were rounded; weights are read once, or written out for gradients.

Sums run in fp32, 128 or 256 input features at a time: what the tensor cores add up by themselves keeps 14 bits. Parts
are always added in the same order.

Shapes: T tokens, K input features, N output features, G rows and B columns of tiles, M columns of a part.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from harmonia.kernels.arrivals import MAX_TILES, arrival_counts
from harmonia.kernels.fp8_weight import Fp8Weight
from harmonia.kernels.matmul_choices import Choice

_SIDE = 128
_GROUP = tl.constexpr(8)  # tiles of tokens that take turns over the same rows of the weight, which the L2 cache holds


def product(
    values_TK: Tensor,
    scale_TB: Tensor,
    weight: Fp8Weight,
    bias_N: Tensor | None,
    choice: Choice,
    *,
    dtype: torch.dtype,
    gate: str = "",
) -> Tensor:
    """x W^T + b of quantised activations; with `gate` activation(gate) * up of the two halves of its features.

    A weight with square tiles needs `choice.block_k` of 128.
    """
    num_tokens, num_in = values_TK.shape
    num_out = weight.weight_NK.shape[0]
    y_TN = torch.empty(num_tokens, num_out // 2 if gate else num_out, dtype=dtype, device=values_TK.device)
    if y_TN.numel() == 0:
        return y_TN
    assert weight.is_per_channel or choice.block_k == _SIDE, "a step of the sum has one scale"
    align = max(_SIDE, choice.block_k)
    part_size = triton.cdiv(triton.cdiv(num_in, choice.parts), align) * align
    num_parts = triton.cdiv(num_in, part_size)
    tiles_t, tiles_n = triton.cdiv(num_tokens, choice.block_t), triton.cdiv(num_out, choice.block_n)
    spread = choice.spread and 1 < num_parts and tiles_t * tiles_n <= MAX_TILES
    sums = arrived = None
    if spread:
        size = num_parts * tiles_t * tiles_n * choice.block_t * choice.block_n
        sums = torch.empty(size, dtype=torch.float32, device=values_TK.device)
        arrived = arrival_counts(values_TK.device)
    _product[(tiles_t * tiles_n, num_parts if spread else 1)](
        *(values_TK, scale_TB, weight.weight_NK, weight.scale_GB, bias_N, y_TN, sums, arrived),
        *(num_tokens, num_out, num_in, scale_TB.shape[1], part_size, y_TN.stride(0)),
        *(choice.block_t, choice.block_n, choice.block_k, num_parts, spread, choice.swap),
        *(num_in % choice.block_k == 0, 0 if weight.is_per_channel else weight.tile.rows, gate),
        num_warps=choice.warps,
        num_stages=choice.stages,
    )
    return y_TN


def row_product(
    values_TK: Tensor,
    scale_T1: Tensor,
    weight: Fp8Weight,
    bias_N: Tensor | None,
    choice: Choice,
    *,
    dtype: torch.dtype,
    gate: str = "",
) -> Tensor:
    """The same for very few tokens, without tensor cores; of a weight with one scale per output feature."""
    num_tokens, num_in = values_TK.shape
    num_out = weight.weight_NK.shape[0]
    y_TN = torch.empty(num_tokens, num_out // 2 if gate else num_out, dtype=dtype, device=values_TK.device)
    if y_TN.numel() == 0:
        return y_TN
    assert weight.is_per_channel, "there is one scale for a whole sum"
    block_n = max(2, choice.block_n) if gate else choice.block_n
    _row_product[(triton.cdiv(num_out, block_n), num_tokens)](
        *(values_TK, scale_T1, weight.weight_NK, weight.scale_GB, bias_N, y_TN),
        *(num_out, num_in, y_TN.stride(0)),
        *(block_n, choice.block_k, num_in % choice.block_k == 0, gate),
        num_warps=choice.warps,
        num_stages=choice.stages,
    )
    return y_TN


def dequantised_columns(weight: Fp8Weight, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Columns of a weight: weight_NM."""
    num_out, num_in = weight.weight_NK.shape
    weight_NM = torch.empty(num_out, stop - start, dtype=dtype, device=weight.weight_NK.device)
    rows, columns = 16, 256
    _dequantise[(triton.cdiv(num_out, rows), triton.cdiv(stop - start, columns))](
        *(weight.weight_NK, weight.scale_GB, weight_NM, num_out, num_in, start, stop),
        *(weight.scale_GB.shape[1], weight.tile.rows, weight.tile.columns, rows, columns),
        num_warps=4,
    )
    return weight_NM


@triton.jit(do_not_specialize=["num_tokens"])
def _product(
    x_ptr,
    x_scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    y_ptr,
    sums_ptr,
    arrived_ptr,
    num_tokens,
    num_out,
    num_in,
    num_scales,
    part_size,
    y_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    SPREAD: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
    TILE_ROWS: tl.constexpr,
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
    column = in_group // group_t * BLOCK_N + tl.arange(0, BLOCK_N)
    n = _features(column, num_out, GATE)
    x_ptr += t.to(tl.int64)[:, None] * num_in
    weight_ptr += n.to(tl.int64)[:, None] * num_in
    x_scale_ptr += t.to(tl.int64) * num_scales
    weight_scale_ptr += n if TILE_ROWS == 0 else n // TILE_ROWS * num_scales
    if SPREAD:
        first = tl.program_id(1) * part_size
        last = tl.minimum(first + part_size, num_in)
        total = _sum_part(
            x_ptr, x_scale_ptr, weight_ptr, weight_scale_ptr, has_token, first, last,
            BLOCK_T, BLOCK_N, BLOCK_K, SWAP, EVEN, TILE_ROWS,
        )  # fmt: skip
        rows: tl.constexpr = BLOCK_N if SWAP else BLOCK_T
        place = tl.arange(0, rows)[:, None] * (BLOCK_T * BLOCK_N // rows)
        place += tl.arange(0, BLOCK_T * BLOCK_N // rows)[None, :]
        sums_ptr += tile.to(tl.int64) * (PARTS * BLOCK_T * BLOCK_N) + place
        tl.store(sums_ptr + tl.program_id(1) * (BLOCK_T * BLOCK_N), total)
        tl.debug_barrier()  # all threads have stored before one says so
        if tl.atomic_add(arrived_ptr + tile, 1, sem="acq_rel") != PARTS - 1:
            return
        tl.store(arrived_ptr + tile, 0)
        total = tl.zeros_like(total)
        for part in tl.static_range(PARTS):
            total += tl.load(sums_ptr + part * (BLOCK_T * BLOCK_N), cache_modifier=".cg")
    else:
        total = tl.zeros((BLOCK_N, BLOCK_T) if SWAP else (BLOCK_T, BLOCK_N), tl.float32)
        for part in range(PARTS):
            first = part * part_size
            last = tl.minimum(first + part_size, num_in)
            total += _sum_part(
                x_ptr, x_scale_ptr, weight_ptr, weight_scale_ptr, has_token, first, last,
                BLOCK_T, BLOCK_N, BLOCK_K, SWAP, EVEN, TILE_ROWS,
            )  # fmt: skip
    if SWAP:
        total = tl.trans(total)
    if TILE_ROWS == 0:
        total *= tl.load(x_scale_ptr, has_token, 0.0)[:, None] * tl.load(weight_scale_ptr)[None, :]
    if bias_ptr is not None:
        total += tl.load(bias_ptr + n).to(tl.float32)[None, :]
    y_ptr += t.to(tl.int64)[:, None] * y_stride
    _store(y_ptr, total, has_token, in_group // group_t, num_out, BLOCK_T, BLOCK_N, GATE)


@triton.jit
def _features(column, num_out, GATE: tl.constexpr):
    """Rows of the weight that columns of a tile show: with a gate, 2 i and 2 i + 1 are features i of the two halves."""
    n = column
    if GATE != "":
        n = column // 2 + column % 2 * (num_out // 2)
    return tl.where(column < num_out, n, 0)


@triton.jit
def _store(y_ptr, total, has_token, tile_n, num_out, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, GATE: tl.constexpr):
    if GATE == "":
        column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        tl.store(y_ptr + column[None, :], total, has_token[:, None] & (column < num_out)[None, :])
    else:
        gate, up = tl.split(tl.reshape(total, (BLOCK_T, BLOCK_N // 2, 2)))
        half = tile_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        mask = has_token[:, None] & (half < num_out // 2)[None, :]
        tl.store(y_ptr + half[None, :], _activate(gate, GATE) * up, mask)


@triton.jit
def _sum_part(
    x_ptr,
    x_scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    has_token,
    first,
    last,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    EVEN: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """The product over a range of input features, block after block: [N, T] with SWAP, else [T, N].

    SWAP multiplies W x^T, so that tiles of 64 features or more use the instructions of whole warp groups (wgmma)
    however few the tokens are; others widen to 16 bits first.
    """
    total = tl.zeros((BLOCK_N, BLOCK_T) if SWAP else (BLOCK_T, BLOCK_N), tl.float32)
    in_block = tl.arange(0, BLOCK_K)
    for k in range(first, last, BLOCK_K):
        if EVEN:
            x = tl.load(x_ptr + k + in_block[None, :], has_token[:, None], 0.0)
            weight = tl.load(weight_ptr + k + in_block[None, :], eviction_policy="evict_first")
        else:
            inside = (k + in_block < last)[None, :]
            x = tl.load(x_ptr + k + in_block[None, :], has_token[:, None] & inside, 0.0)
            weight = tl.load(weight_ptr + k + in_block[None, :], inside, 0.0, eviction_policy="evict_first")
        block = tl.dot(weight, tl.trans(x)) if SWAP else tl.dot(x, tl.trans(weight))
        if TILE_ROWS == 0:
            total += block
        else:
            x_scale = tl.load(x_scale_ptr + k // BLOCK_K, has_token, 0.0)
            weight_scale = tl.load(weight_scale_ptr + k // BLOCK_K)
            scale = weight_scale[:, None] * x_scale[None, :] if SWAP else x_scale[:, None] * weight_scale[None, :]
            total += block * scale
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
    x_scale_ptr,
    weight_ptr,
    weight_scale_ptr,
    bias_ptr,
    y_ptr,
    num_out,
    num_in,
    y_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    GATE: tl.constexpr,
):
    """One token times some rows of the weight, without tensor cores."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    n = _features(column, num_out, GATE)
    token = tl.program_id(1).to(tl.int64)
    x_ptr += token * num_in
    weight_ptr += n.to(tl.int64)[:, None] * num_in
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for first in range(0, num_in, BLOCK_K):
        if EVEN:
            x = tl.load(x_ptr + first + k).to(tl.float32)
            weight = tl.load(weight_ptr + first + k[None, :], eviction_policy="evict_first")
        else:
            inside = first + k < num_in
            x = tl.load(x_ptr + first + k, inside, 0.0).to(tl.float32)
            weight = tl.load(weight_ptr + first + k[None, :], inside[None, :], 0.0, eviction_policy="evict_first")
        total += weight.to(tl.float32) * x[None, :]
    y = tl.sum(total, axis=1) * (tl.load(x_scale_ptr + token) * tl.load(weight_scale_ptr + n))
    if bias_ptr is not None:
        y += tl.load(bias_ptr + n).to(tl.float32)
    y_ptr += token * y_stride
    if GATE == "":
        tl.store(y_ptr + column, y, column < num_out)
    else:
        gate, up = tl.split(tl.reshape(y, (BLOCK_N // 2, 2)))
        half = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        tl.store(y_ptr + half, _activate(gate, GATE) * up, half < num_out // 2)


@triton.jit
def _dequantise(
    weight_ptr,
    scale_ptr,
    out_ptr,
    num_out,
    num_in,
    start,
    stop,
    num_scales,
    tile_rows,
    tile_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = start + column
    mask = (n < num_out)[:, None] & (k < stop)[None, :]
    weight = tl.load(weight_ptr + n.to(tl.int64)[:, None] * num_in + k[None, :], mask, 0.0)
    scale = tl.load(scale_ptr + (n // tile_rows * num_scales)[:, None] + (k // tile_columns)[None, :], mask, 0.0)
    place = n.to(tl.int64)[:, None] * (stop - start) + column[None, :]
    tl.store(out_ptr + place, (weight.to(tl.float32) * scale).to(out_ptr.dtype.element_ty), mask)
