"""Log-sums, entropies and gradients of rows of logits on a GPU: one program per row, each logit read once per kernel.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAX_BLOCK = 4096
_LEAST = tl.constexpr(87.0)  # so far below, a token adds less than 1e-35; a masked one is infinitely far below


def log_sums(logits_RV: Tensor, ids_R: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """(log_sum_R, log-probability of one token per row, if any are named), from fp32 logits."""
    num_rows, size = logits_RV.shape
    log_sum_R = torch.empty(num_rows, dtype=torch.float32, device=logits_RV.device)
    logprob_R = None if ids_R is None else torch.empty_like(log_sum_R)
    if num_rows:
        block, warps = _blocking(size)
        _log_sum_rows[(num_rows,)](
            logits_RV, ids_R, log_sum_R, logprob_R, logits_RV.stride(0), size, block, num_warps=warps
        )
    return log_sum_R, logprob_R


def entropies(logits_RV: Tensor, log_sum_R: Tensor) -> Tensor:
    """Entropy of each row's distribution."""
    num_rows, size = logits_RV.shape
    entropy_R = torch.empty_like(log_sum_R)
    if num_rows:
        block, warps = _blocking(size)
        _entropy_rows[(num_rows,)](logits_RV, log_sum_R, entropy_R, logits_RV.stride(0), size, block, num_warps=warps)
    return entropy_R


def logits_to_gradient(
    logits_RV: Tensor,
    ids_R: Tensor,
    log_sum_R: Tensor,
    dlogprobs_R: Tensor,
    softcap: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient in this type, in the memory of the logits: a narrower row takes the first half of its own."""
    num_rows, size = logits_RV.shape
    dlogits_RV = logits_RV if dtype is torch.float32 else logits_RV.view(dtype)[:, :size]
    if num_rows:
        block, warps = _blocking(size)
        _gradient_rows[(num_rows,)](
            *(logits_RV, ids_R, log_sum_R, dlogprobs_R, dlogits_RV, logits_RV.stride(0), dlogits_RV.stride(0)),
            *(size, 0.0 if softcap is None else 1 / softcap, softcap is not None, block),
            num_warps=warps,
        )
    return dlogits_RV


def _blocking(size: int) -> tuple[int, int]:
    """(logits that a program holds at a time, its warps)."""
    block = min(_MAX_BLOCK, triton.next_power_of_2(size))
    return block, max(1, min(8, block // 256))


@triton.jit(do_not_specialize_on_alignment=["ids", "log_sums", "logprobs"])
def _log_sum_rows(logits, ids, log_sums, logprobs, stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    lanes = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        # Every lane keeps its own maximum and sum, so that the lanes need not meet before the end.
        x = tl.load(logits + start + lanes, mask=start + lanes < size, other=float("-inf"))
        new = tl.maximum(largest, x)
        reference = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(largest - reference) + tl.exp(x - reference)
        largest = new
    peak = tl.max(largest, 0)
    reference = tl.where(peak == float("-inf"), 0.0, peak)
    whole = tl.sum(total * tl.exp(largest - reference), 0)
    log_sum = peak + tl.log(tl.where(whole == 0.0, 1.0, whole))  # 0 where every logit is masked
    tl.store(log_sums + row, log_sum)
    if ids is not None:
        chosen = tl.load(logits + tl.load(ids + row))
        tl.store(logprobs + row, chosen - log_sum)


@triton.jit
def _entropy_rows(logits, log_sums, entropies, stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    lanes = tl.arange(0, BLOCK)
    log_sum = tl.load(log_sums + row)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        x = tl.load(logits + start + lanes, mask=start + lanes < size, other=float("-inf"))
        below = log_sum - x
        is_far = below > _LEAST
        below = tl.where(is_far, 0.0, below)
        total += tl.exp(-below) * below
    tl.store(entropies + row, tl.sum(total, 0))


@triton.jit(do_not_specialize_on_alignment=["ids", "log_sums", "dlogprobs"])
def _gradient_rows(
    logits, ids, log_sums, dlogprobs, dlogits, stride, dstride, size, inverse_cap, CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    dlogits += row * dstride
    lanes = tl.arange(0, BLOCK)
    log_sum, dlogprob, chosen = tl.load(log_sums + row), tl.load(dlogprobs + row), tl.load(ids + row)
    for start in range(0, size, BLOCK):
        columns = start + lanes
        x = tl.load(logits + columns, mask=columns < size, other=0.0)
        dx = tl.where(columns == chosen, dlogprob, 0.0) - dlogprob * tl.exp(x - log_sum)
        if CAPPED:
            bent = x * inverse_cap
            dx *= 1.0 - bent * bent
        # What is written may lie where other warps have yet to read: a block of half width begins at half its offset.
        tl.debug_barrier()
        tl.store(dlogits + columns, dx.to(dlogits.dtype.element_ty), mask=columns < size)
