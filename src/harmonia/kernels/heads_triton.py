"""Heads from the fused projection on a GPU, in one launch each way: split, normalise, rotate, write.

A program takes one token and a few heads that are all queries, all keys or all values. Each head is held as its two
halves, which the rotation turns against each other. Everything is computed in fp32 and rounded once.

Shapes: T tokens, H query heads, G key/value heads, D head size, F features of the projection, N blocks, P tokens per
block, W programs over tokens, S groups of heads; in kernels B heads of a program, E half a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from harmonia.kernels.projection import Heads

_TOKENS_PER_PROGRAM = 16  # where the gradients of norm weights are summed over tokens
_FEATURES_PER_PROGRAM, _WARPS = 512, 2  # features of the left halves of heads


def split_heads(
    qkv_TF: Tensor,
    heads: Heads,
    positions_T: Tensor,
    cached: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(q_THD, k_TGD, v_TGD); the latter go to (k_NPGD, v_NPGD, slots_T) if `cached` gives these, and are those then.

    Without, values are a slice of the projection where that is kept for the norms' backward anyway.
    """
    num_tokens, size = qkv_TF.shape[0], heads.head_dim
    has_norm = heads.q_norm_D is not None
    qkv_TF = qkv_TF if qkv_TF.stride(-1) == 1 else qkv_TF.contiguous()
    q_THD = qkv_TF.new_empty(num_tokens, heads.num_heads, size)
    if cached is None:
        k_TGD = qkv_TF.new_empty(num_tokens, heads.num_kv_heads, size)
        v_TGD = qkv_TF.unflatten(1, (-1, size))[:, -heads.num_kv_heads :] if has_norm else torch.empty_like(k_TGD)
        slots_T = positions_T
    else:
        k_TGD, v_TGD, slots_T = cached
        assert k_TGD.is_contiguous() and v_TGD.is_contiguous(), "slots of the cache lie one after another"
    block = _block(heads)
    parts_q, parts_kv = triton.cdiv(heads.num_heads, block), triton.cdiv(heads.num_kv_heads, block)
    moves_v = cached is not None or not has_norm
    if num_tokens:
        _split_heads[(num_tokens, parts_q + parts_kv * (2 if moves_v else 1))](
            *(qkv_TF, heads.q_norm_D, heads.k_norm_D, heads.cos_sin_CD, positions_T, slots_T, q_THD, k_TGD, v_TGD),
            *(qkv_TF.stride(0), heads.eps, heads.num_heads, heads.num_kv_heads, size),
            *(block, triton.next_power_of_2(size // 2), has_norm, cached is not None),
            num_warps=_WARPS,
        )
    return q_THD, k_TGD, v_TGD


def split_heads_backward(
    given: tuple[Tensor, Tensor, Tensor], qkv_TF: Tensor | None, heads: Heads, positions_T: Tensor, train_norms: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the projection and, in fp32, of the norms' weights, from those of queries, keys and values."""
    d_q_THD, d_k_TGD, d_v_TGD = (x if x.is_contiguous() else x.contiguous() for x in given)
    num_tokens, size = d_q_THD.shape[0], heads.head_dim
    d_qkv_TF = d_q_THD.new_empty(num_tokens, (heads.num_heads + 2 * heads.num_kv_heads) * size)
    source_TF = d_qkv_TF if qkv_TF is None else qkv_TF  # not read where there is no norm
    block = _block(heads)
    parts_q, parts_kv = triton.cdiv(heads.num_heads, block), triton.cdiv(heads.num_kv_heads, block)
    per_program = _TOKENS_PER_PROGRAM if train_norms else 1
    programs = triton.cdiv(num_tokens, per_program)
    sums_WSD = None
    if train_norms:
        sums_WSD = torch.empty(programs, parts_q + parts_kv, size, dtype=torch.float32, device=d_qkv_TF.device)
    if num_tokens:
        _split_heads_backward[(programs, parts_q + 2 * parts_kv)](
            *(d_q_THD, d_k_TGD, d_v_TGD, source_TF, heads.q_norm_D, heads.k_norm_D, heads.cos_sin_CD, positions_T),
            *(d_qkv_TF, sums_WSD, num_tokens, source_TF.stride(0), heads.eps),
            *(heads.num_heads, heads.num_kv_heads, size, block, triton.next_power_of_2(size // 2), per_program),
            *(qkv_TF is not None, train_norms),
            num_warps=_WARPS,
        )
    if sums_WSD is None:
        return d_qkv_TF, None, None
    return d_qkv_TF, sums_WSD[:, :parts_q].sum((0, 1)), sums_WSD[:, parts_q:].sum((0, 1))


def _block(heads: Heads) -> int:
    """Heads of a program, however many tokens there are, so that each sums in the same order in every batch."""
    half = triton.next_power_of_2(heads.head_dim // 2)
    return min(max(1, _FEATURES_PER_PROGRAM // half), triton.next_power_of_2(heads.num_heads))


@triton.jit
def _split_heads(
    qkv, q_norm, k_norm, table, positions, slots, q_out, k_out, v_out, row_stride, eps,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, B: tl.constexpr, E: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_SLOTS: tl.constexpr,
):  # fmt: skip
    PARTS_Q: tl.constexpr = (H + B - 1) // B
    PARTS_KV: tl.constexpr = (G + B - 1) // B
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = qkv + token * row_stride
    angles = table + tl.load(positions + token).to(tl.int64) * D
    if part < PARTS_Q:
        _turn(row, q_out + token * (H * D), q_norm, angles, part * B, eps, H, D, B, E, HAS_NORM)
    else:
        place = token
        if HAS_SLOTS:
            place = tl.load(slots + token).to(tl.int64)
        if place >= 0:
            if part < PARTS_Q + PARTS_KV:
                target = k_out + place * (G * D)
                _turn(row + H * D, target, k_norm, angles, (part - PARTS_Q) * B, eps, G, D, B, E, HAS_NORM)
            else:
                start = (part - PARTS_Q - PARTS_KV) * (B * D)
                offsets = start + tl.arange(0, 2 * B * E)  # heads lie without gaps, so values are just copied
                mask = (offsets < G * D) & (offsets < start + B * D)
                values = tl.load(row + (H + G) * D + offsets, mask=mask)
                tl.store(v_out + place * (G * D) + offsets, values, mask=mask)


@triton.jit
def _turn(
    source, target, norm, angles, first, eps, COUNT: tl.constexpr, D: tl.constexpr, B: tl.constexpr, E: tl.constexpr,
    HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate the heads from `first` on."""
    offset_E, offset_BE, mask_E, mask_BE = _places(first, COUNT, D, B, E)
    left_BE = tl.load(source + offset_BE, mask=mask_BE, other=0.0).to(tl.float32)
    right_BE = tl.load(source + offset_BE + D // 2, mask=mask_BE, other=0.0).to(tl.float32)
    cos_E = tl.load(angles + offset_E, mask=mask_E, other=0.0)[None, :]
    sin_E = tl.load(angles + offset_E + D // 2, mask=mask_E, other=0.0)[None, :]
    if HAS_NORM:
        scale_B1 = _inverse_rms(left_BE, right_BE, eps, D)[:, None]
        left_BE = left_BE * scale_B1 * tl.load(norm + offset_E, mask=mask_E, other=0.0).to(tl.float32)[None, :]
        right_BE = (
            right_BE * scale_B1 * tl.load(norm + offset_E + D // 2, mask=mask_E, other=0.0).to(tl.float32)[None, :]
        )
    tl.store(target + offset_BE, left_BE * cos_E - right_BE * sin_E, mask=mask_BE)
    tl.store(target + offset_BE + D // 2, right_BE * cos_E + left_BE * sin_E, mask=mask_BE)


@triton.jit(do_not_specialize=["num_tokens"])
def _split_heads_backward(
    d_q, d_k, d_v, qkv, q_norm, k_norm, table, positions, d_qkv, sums, num_tokens, row_stride, eps,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, B: tl.constexpr, E: tl.constexpr, TOKENS: tl.constexpr,
    HAS_NORM: tl.constexpr, TRAIN_NORMS: tl.constexpr,
):  # fmt: skip
    PARTS_Q: tl.constexpr = (H + B - 1) // B
    PARTS_KV: tl.constexpr = (G + B - 1) // B
    part = tl.program_id(1)
    first = tl.program_id(0).to(tl.int64) * TOKENS
    sum_left_E = tl.zeros([E], tl.float32)
    sum_right_E = tl.zeros([E], tl.float32)
    for token in range(first, tl.minimum(first + TOKENS, num_tokens)):
        angles = table + tl.load(positions + token).to(tl.int64) * D
        out = d_qkv + token * ((H + 2 * G) * D)
        if part < PARTS_Q:
            d_left_E, d_right_E = _turn_back(
                d_q + token * (H * D),
                out,
                qkv + token * row_stride,
                q_norm,
                angles,
                part * B,
                eps,
                H,
                D,
                B,
                E,
                HAS_NORM,
            )
            sum_left_E += d_left_E
            sum_right_E += d_right_E
        elif part < PARTS_Q + PARTS_KV:
            d_left_E, d_right_E = _turn_back(
                d_k + token * (G * D), out + H * D, qkv + token * row_stride + H * D, k_norm, angles,
                (part - PARTS_Q) * B, eps, G, D, B, E, HAS_NORM,
            )  # fmt: skip
            sum_left_E += d_left_E
            sum_right_E += d_right_E
        else:
            start = (part - PARTS_Q - PARTS_KV) * (B * D)
            offsets = start + tl.arange(0, 2 * B * E)
            mask = (offsets < G * D) & (offsets < start + B * D)
            tl.store(out + (H + G) * D + offsets, tl.load(d_v + token * (G * D) + offsets, mask=mask), mask=mask)
    if TRAIN_NORMS:  # noqa: SIM102  the compiler would look into one condition's body either way
        if part < PARTS_Q + PARTS_KV:
            offset_E = tl.arange(0, E)
            into = sums + (tl.program_id(0).to(tl.int64) * (PARTS_Q + PARTS_KV) + part) * D + offset_E
            tl.store(into, sum_left_E, mask=offset_E < D // 2)
            tl.store(into + D // 2, sum_right_E, mask=offset_E < D // 2)


@triton.jit
def _turn_back(
    d_out, d_in, source, norm, angles, first, eps, COUNT: tl.constexpr, D: tl.constexpr, B: tl.constexpr,
    E: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Gradients of heads before rotation and norm; returns what this adds to that of the norm's weight, in halves."""
    offset_E, offset_BE, mask_E, mask_BE = _places(first, COUNT, D, B, E)
    given_left_BE = tl.load(d_out + offset_BE, mask=mask_BE, other=0.0).to(tl.float32)
    given_right_BE = tl.load(d_out + offset_BE + D // 2, mask=mask_BE, other=0.0).to(tl.float32)
    cos_E = tl.load(angles + offset_E, mask=mask_E, other=0.0)[None, :]
    sin_E = tl.load(angles + offset_E + D // 2, mask=mask_E, other=0.0)[None, :]
    d_left_BE = given_left_BE * cos_E + given_right_BE * sin_E
    d_right_BE = given_right_BE * cos_E - given_left_BE * sin_E
    sum_left_E = tl.zeros([E], tl.float32)
    sum_right_E = tl.zeros([E], tl.float32)
    if HAS_NORM:
        left_BE = tl.load(source + offset_BE, mask=mask_BE, other=0.0).to(tl.float32)
        right_BE = tl.load(source + offset_BE + D // 2, mask=mask_BE, other=0.0).to(tl.float32)
        scale_B1 = _inverse_rms(left_BE, right_BE, eps, D)[:, None]
        left_BE *= scale_B1
        right_BE *= scale_B1
        sum_left_E = tl.sum(d_left_BE * left_BE, 0)
        sum_right_E = tl.sum(d_right_BE * right_BE, 0)
        d_left_BE *= tl.load(norm + offset_E, mask=mask_E, other=0.0).to(tl.float32)[None, :]
        d_right_BE *= tl.load(norm + offset_E + D // 2, mask=mask_E, other=0.0).to(tl.float32)[None, :]
        mean_B1 = ((tl.sum(d_left_BE * left_BE, 1) + tl.sum(d_right_BE * right_BE, 1)) / D)[:, None]
        d_left_BE = scale_B1 * (d_left_BE - left_BE * mean_B1)
        d_right_BE = scale_B1 * (d_right_BE - right_BE * mean_B1)
    tl.store(d_in + offset_BE, d_left_BE, mask=mask_BE)
    tl.store(d_in + offset_BE + D // 2, d_right_BE, mask=mask_BE)
    return sum_left_E, sum_right_E


@triton.jit
def _places(first, COUNT: tl.constexpr, D: tl.constexpr, B: tl.constexpr, E: tl.constexpr):
    """Where the left halves of some heads lie in a token, and which of it is there."""
    offset_E = tl.arange(0, E)
    head_B = first + tl.arange(0, B)
    mask_E = offset_E < D // 2
    return offset_E, head_B[:, None] * D + offset_E[None, :], mask_E, (head_B < COUNT)[:, None] & mask_E[None, :]


@triton.jit
def _inverse_rms(left_BE, right_BE, eps, D: tl.constexpr):
    squares_B = tl.sum(left_BE * left_BE, 1) + tl.sum(right_BE * right_BE, 1)
    return 1.0 / tl.sqrt(squares_B / D + eps)
