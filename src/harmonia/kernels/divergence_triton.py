"""Divergences of rows of logits and their gradients on a GPU: one program per row, which reads each logit three times.

Shapes: R rows, S tokens of the student's logits, U of the teacher's.
"""

from __future__ import annotations

from typing import get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from harmonia.protocol.losses import Divergence

_MAX_BLOCK = 2048
_LEAST = tl.constexpr(87.0)  # so far below the most likely token, one adds less than 1e-35
_KINDS = get_args(Divergence)
_FORWARD, _VARIATION = tl.constexpr(_KINDS.index("forward_kl")), tl.constexpr(_KINDS.index("total_variation"))


def divergences_to_gradient(
    logits_RS: Tensor, teacher_RU: Tensor, weights_R: Tensor, kind: int, softcap: float | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(gradient in this type, worth_3R: divergence, overlap, and agreement of each row).

    The gradient is in the memory of the logits: a narrower row takes the first half of its own.
    """
    num_rows, size = logits_RS.shape
    dlogits_RS = logits_RS if dtype is torch.float32 else logits_RS.view(dtype)[:, :size]
    worth_3R = torch.empty(3, num_rows, dtype=torch.float32, device=logits_RS.device)
    if num_rows:
        num_shared = min(size, teacher_RU.shape[1])
        block = min(_MAX_BLOCK, triton.next_power_of_2(size))
        _divergence_rows[(num_rows,)](
            *(logits_RS, teacher_RU, weights_R, dlogits_RS, worth_3R),
            *(logits_RS.stride(0), teacher_RU.stride(0), dlogits_RS.stride(0), num_rows, size, num_shared),
            *(kind, 0.0 if softcap is None else 1 / softcap, block),
            num_warps=max(1, min(8, block // 256)),
        )
    return dlogits_RS, worth_3R


@triton.jit
def _grown(x, largest, total):
    """Largest logit and sum of exponentials below it: each lane has its own until the end."""
    new = tl.maximum(largest, x)
    reference = tl.where(new == float("-inf"), 0.0, new)
    return new, total * tl.exp(largest - reference) + tl.exp(x - reference)


@triton.jit
def _joined(largest, total):
    """(largest of all lanes, their sum below it)."""
    peak = tl.max(largest, 0)
    return peak, tl.sum(total * tl.exp(largest - peak), 0)


@triton.jit
def _shares(z, t, z_peak, t_peak, z_share, t_share, offset):
    """(q, p, log q - log p, the first two's distances from the most likely token)."""
    z_below, t_below = z - z_peak, t - t_peak
    return tl.exp(z_below) * z_share, tl.exp(t_below) * t_share, z - t + offset, z_below, t_below


@triton.jit(do_not_specialize=["kind", "rows"], do_not_specialize_on_alignment=["weights"])
def _divergence_rows(
    logits, teachers, weights, dlogits, worth, stride, teacher_stride, dstride, rows, size, num_shared, kind,
    inverse_cap, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits, teachers, dlogits = logits + row * stride, teachers + row * teacher_stride, dlogits + row * dstride
    lanes = tl.arange(0, BLOCK)
    z_largest, z_total = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
    t_largest, t_total = z_largest, z_total
    for start in range(0, num_shared, BLOCK):
        columns = start + lanes
        z = tl.load(logits + columns, mask=columns < num_shared, other=float("-inf"))
        t = tl.load(teachers + columns, mask=columns < num_shared, other=float("-inf"))
        z_largest, z_total = _grown(z, z_largest, z_total)
        t_largest, t_total = _grown(t, t_largest, t_total)
    z_peak, z_sum = _joined(z_largest, z_total)
    t_peak, t_sum = _joined(t_largest, t_total)
    z_share, t_share = 1.0 / z_sum, 1.0 / t_sum
    offset = t_peak - z_peak + tl.log(t_sum / z_sum)
    z_nothing, t_nothing = z_peak - 2 * _LEAST, t_peak - 2 * _LEAST  # has no probability, nor a difference that is NaN

    terms, distances = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    aboves, agrees = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_shared, BLOCK):
        columns = start + lanes
        z = tl.load(logits + columns, mask=columns < num_shared, other=z_nothing)
        t = tl.load(teachers + columns, mask=columns < num_shared, other=t_nothing)
        q, p, ratio, z_below, t_below = _shares(z, t, z_peak, t_peak, z_share, t_share, offset)
        forward = tl.where(t_below < -_LEAST, 0.0, -p * ratio)
        reverse = tl.where(z_below < -_LEAST, 0.0, q * ratio)
        terms += tl.where(kind == _FORWARD, forward, reverse)
        distances += tl.abs(q - p)
        aboves += tl.where(ratio > 0, q, 0.0)
        agrees = tl.where((z == z_peak) & (t == t_peak), 1.0, agrees)
    distance, mean = tl.sum(distances, 0) / 2, tl.sum(aboves, 0)
    divergence = tl.sum(terms, 0)
    is_variation = kind == _VARIATION
    tl.store(worth + row, tl.where(is_variation, distance, divergence))
    tl.store(worth + rows + row, 1.0 - distance)
    tl.store(worth + 2 * rows + row, tl.max(agrees, 0))

    weight = tl.load(weights + row)
    for start in range(0, size, BLOCK):
        columns = start + lanes
        z = tl.load(logits + columns, mask=columns < num_shared, other=z_nothing)
        t = tl.load(teachers + columns, mask=columns < num_shared, other=t_nothing)
        q, p, ratio, z_below, _ = _shares(z, t, z_peak, t_peak, z_share, t_share, offset)
        reverse = tl.where(z_below < -_LEAST, 0.0, q * (ratio - divergence))
        variation = q * (tl.where(ratio > 0, 1.0, 0.0) - mean)
        dz = tl.where(kind == _FORWARD, q - p, tl.where(is_variation, variation, reverse))
        bent = z * inverse_cap
        dz = tl.where(columns < num_shared, dz * weight * (1.0 - bent * bent), 0.0)
        # What is written may lie where other warps have yet to read: a block of half width begins at half its offset.
        tl.debug_barrier()
        tl.store(dlogits + columns, dz.to(dlogits.dtype.element_ty), mask=columns < size)
