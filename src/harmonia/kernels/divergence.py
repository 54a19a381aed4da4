"""How far a student's next-token distributions are from a teacher's, and the derivative at once: p is constant.

p (teacher) and q (student) are softmaxes over the first V tokens, those that both have. What one of them has beyond is
padding that no tokenizer makes: it has no probability here and gets no gradient.

Shapes: R rows, S tokens of the student's logits, U of the teacher's, V = min(S, U), B rows of a block.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from harmonia.kernels import gpu, native
from harmonia.kernels.logprobs import exp_or_nan
from harmonia.kernels.native import Impl, kernel
from harmonia.kernels.native_code import float32, float32s, float64, float64s, int64s, part, share
from harmonia.protocol.losses import Divergence

_KINDS = get_args(Divergence)
_FORWARD_KL, _REVERSE_KL = _KINDS.index("forward_kl"), _KINDS.index("reverse_kl")
"""Compiled kernels are told by number which one is meant."""
_LOGITS_PER_THREAD = 32_768
_BLOCK_BYTES = 8 << 20  # of logits; eager steps hold some copies of a block
_LEAST = 87.0  # so far below the most likely token, one adds less than 1e-35
_RUN = 1024  # summed in fp32 before it is added in fp64


class Divergences(NamedTuple):
    """What is known of each row, in fp32."""

    value_R: Tensor
    """D(teacher || student): nats, and from 0 to 1 for the total variation."""
    overlap_R: Tensor
    """Sum over tokens of min(p, q), from 0 to 1: how often speculative sampling accepts q's token for p's."""
    agrees_R: Tensor
    """1 where a most likely token of the one is a most likely one of the other, else 0."""


def divergences_to_gradient(
    logits_RS: Tensor,
    teacher_RU: Tensor,
    weights_R: Tensor,
    divergence: Divergence,
    softcap: float | None = None,
    impl: Impl = "auto",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Divergences]:
    """(dlogits_RS in `dtype`, what the rows are worth): the gradient of the sum of weight * D of each row.

    Both logits are fp32. The student's are overwritten; as in `logits_to_gradient` the result is their memory. With
    log-ratio r = log q - log p, the gradient of a row with respect to its logits is q - p (forward KL: sum of -p r),
    q (r - D) (reverse KL: sum of q r), and q ([r > 0] - sum of q [r > 0]) (total variation: sum of |p - q| / 2).
    If logit = softcap * tanh(score / softcap), then with respect to the score: times 1 - (logit / softcap)^2.
    """
    kind, weights_R = _KINDS.index(divergence), weights_R.contiguous()
    if impl == "triton" or (impl == "auto" and gpu.usable(logits_RS, teacher_RU)):
        # imported where it runs: a CPU install has no Triton
        from harmonia.kernels import divergence_triton

        arguments = logits_RS, teacher_RU, weights_R, kind, softcap, dtype
        dlogits_RS, worth_3R = divergence_triton.divergences_to_gradient(*arguments)
        return dlogits_RS, Divergences(*worth_3R)
    fits = native.usable(logits_RS, teacher_RU) and logits_RS.is_contiguous() and teacher_RU.is_contiguous()
    if impl == "native" or (impl == "auto" and fits):
        found = _native(logits_RS, teacher_RU, weights_R, kind, softcap)
    else:
        found = _eager(logits_RS, teacher_RU, weights_R, kind, softcap)
    return logits_RS.to(dtype), found


def _eager(logits_RS: Tensor, teacher_RU: Tensor, weights_R: Tensor, kind: int, softcap: float | None) -> Divergences:
    num_rows, size = logits_RS.shape
    num_shared = min(size, teacher_RU.shape[1])
    step = max(1, _BLOCK_BYTES // (4 * size))
    blocks = []
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        z_BV = logits_RS[rows, :num_shared]
        log_q_BV, log_p_BV = z_BV.log_softmax(-1), teacher_RU[rows, :num_shared].log_softmax(-1)
        q_BV, p_BV, ratio_BV = log_q_BV.exp(), log_p_BV.exp(), log_q_BV - log_p_BV
        distance_B = (p_BV - q_BV).abs().sum(-1) / 2
        if kind == _FORWARD_KL:
            value_B = -_without_far(p_BV * ratio_BV, log_p_BV).sum(-1)
            gradient_BV = q_BV - p_BV
        elif kind == _REVERSE_KL:
            value_B = _without_far(q_BV * ratio_BV, log_q_BV).sum(-1)
            gradient_BV = _without_far(q_BV * (ratio_BV - value_B[:, None]), log_q_BV)
        else:
            value_B, above_BV = distance_B, (ratio_BV > 0).float()
            gradient_BV = q_BV * (above_BV - (q_BV * above_BV).sum(-1, keepdim=True))
        t_BV = teacher_RU[rows, :num_shared]
        is_best_BV = (z_BV == z_BV.amax(-1, keepdim=True)) & (t_BV == t_BV.amax(-1, keepdim=True))
        if softcap is not None:
            gradient_BV *= 1 - (z_BV / softcap).square()
        logits_RS[rows, num_shared:] = 0
        z_BV.copy_(gradient_BV * weights_R[rows, None])
        blocks.append(torch.stack((value_B, 1 - distance_B, is_best_BV.any(-1).float())))
    return Divergences(*(torch.cat(blocks, 1) if blocks else logits_RS.new_empty(3, 0)))


def _without_far(terms_BV: Tensor, log_BV: Tensor) -> Tensor:
    """Terms with a factor exp(log), which is nothing against whatever else they hold where it is so small."""
    return torch.where(log_BV < -_LEAST, 0, terms_BV)


def _native(logits_RS: Tensor, teacher_RU: Tensor, weights_R: Tensor, kind: int, softcap: float | None) -> Divergences:
    num_shared = min(logits_RS.shape[1], teacher_RU.shape[1])
    peak_R, teacher_peak_R = logits_RS[:, :num_shared].amax(-1), teacher_RU[:, :num_shared].amax(-1)
    worth_3R = logits_RS.new_empty(3, len(peak_R))
    tensors = logits_RS, teacher_RU, peak_R, teacher_peak_R, weights_R.float(), worth_3R
    threads = native.threads_for(logits_RS.numel(), _LOGITS_PER_THREAD)
    addresses = (tensor.data_ptr() for tensor in tensors)
    inverse_cap = 0.0 if softcap is None else 1 / softcap
    _divergence_rows.run(threads, *addresses, *logits_RS.shape, teacher_RU.shape[1], kind, inverse_cap)
    return Divergences(*worth_3R)


@kernel("qqqqqqqqqqd")
def _divergence_rows(arguments: int, thread: int, num_threads: int) -> None:
    logits, teachers, peaks, teacher_peaks, weights, worth, rows, size, width, kind = int64s(arguments, 10)
    inverse_cap = float32(float64s(arguments, 11)[10])
    num_shared = min(size, width)
    peak_R, teacher_peak_R, weight_R = float32s(peaks, rows), float32s(teacher_peaks, rows), float32s(weights, rows)
    worth_3R = float32s(worth, 3 * rows)
    value_R, overlap_R, agrees_R = worth_3R[:rows], worth_3R[rows : 2 * rows], worth_3R[2 * rows :]
    first, stop = share(rows, thread, num_threads)
    for row in range(first, stop):
        z_V = float32s(logits + 4 * row * size, num_shared)
        t_V = float32s(teachers + 4 * row * width, num_shared)
        z_peak, t_peak = peak_R[row], teacher_peak_R[row]
        z_sum, t_sum = _sum_below(z_V, z_peak), _sum_below(t_V, t_peak)
        # log q - log p is this far from the difference of the logits: of numbers near each other, so taken in fp64
        offset = float32(float64(t_peak) - float64(z_peak) + math.log(t_sum / z_sum))
        softmaxes = z_peak, t_peak, float32(1 / z_sum), float32(1 / t_sum), offset
        distance, above = _variation(z_V, t_V, softmaxes)
        value_R[row], overlap_R[row] = distance, float32(1) - distance
        agrees_R[row] = _agree(z_V, t_V, z_peak, t_peak)
        if inverse_cap != 0:
            slope_V = _slopes(z_V, inverse_cap)
        if kind == _FORWARD_KL:
            value_R[row] = _forward(z_V, t_V, softmaxes)
            _to_forward_gradient(z_V, t_V, softmaxes, weight_R[row])
        elif kind == _REVERSE_KL:
            value_R[row] = _reverse(z_V, t_V, softmaxes)
            _to_reverse_gradient(z_V, t_V, softmaxes, weight_R[row], value_R[row])
        else:
            _to_variation_gradient(z_V, t_V, softmaxes, weight_R[row], above)
        if inverse_cap != 0:
            for v in range(num_shared):
                z_V[v] *= slope_V[v]
        padding = float32s(logits + 4 * (row * size + num_shared), size - num_shared)
        for v in range(size - num_shared):
            padding[v] = float32(0)


# Each loop does one thing, so that it is vectorised: ten times as fast as one that asks what to do.


@part
def _sum_below(logits_V: Any, peak: float) -> Any:
    """Sum of exponentials of how far logits are below the largest."""
    total = float64(0)
    for start in range(0, len(logits_V), _RUN):
        run_V, sum_of_run = logits_V[start : min(start + _RUN, len(logits_V))], float32(0)
        for v in range(len(run_V)):
            sum_of_run += exp_or_nan(run_V[v] - peak)
        total += float64(sum_of_run)
    return total


@part
def _agree(z_V: Any, t_V: Any, z_peak: float, t_peak: float) -> Any:
    count = float32(0)
    for v in range(len(z_V)):
        count += float32(1) if (z_V[v] == z_peak) & (t_V[v] == t_peak) else float32(0)
    return float32(1) if count > float32(0) else float32(0)


@part
def _variation(z_V: Any, t_V: Any, softmaxes: Any) -> Any:
    """(half the sum of |p - q|, sum of q where it is above p)."""
    z_peak, t_peak, z_share, t_share, offset = softmaxes
    distance, above = float64(0), float64(0)
    for start in range(0, len(z_V), _RUN):
        stop = min(start + _RUN, len(z_V))
        z_run_V, t_run_V, distance_of_run, above_of_run = z_V[start:stop], t_V[start:stop], float32(0), float32(0)
        for v in range(len(z_run_V)):
            q, p = exp_or_nan(z_run_V[v] - z_peak) * z_share, exp_or_nan(t_run_V[v] - t_peak) * t_share
            distance_of_run += abs(q - p)
            above_of_run += q if z_run_V[v] - t_run_V[v] + offset > float32(0) else float32(0)
        distance += float64(distance_of_run)
        above += float64(above_of_run)
    return float32(distance / 2), float32(above)


@part
def _forward(z_V: Any, t_V: Any, softmaxes: Any) -> Any:
    """Sum of p log(p / q)."""
    _, t_peak, _, t_share, offset = softmaxes
    total = float64(0)
    for start in range(0, len(z_V), _RUN):
        stop = min(start + _RUN, len(z_V))
        z_run_V, t_run_V, sum_of_run = z_V[start:stop], t_V[start:stop], float32(0)
        for v in range(len(z_run_V)):
            below = t_run_V[v] - t_peak
            term = exp_or_nan(below) * t_share * (t_run_V[v] - z_run_V[v] - offset)
            sum_of_run += float32(0) if below < float32(-_LEAST) else term
        total += float64(sum_of_run)
    return float32(total)


@part
def _reverse(z_V: Any, t_V: Any, softmaxes: Any) -> Any:
    """Sum of q log(q / p)."""
    z_peak, t_peak, z_share, t_share, offset = softmaxes
    return _forward(t_V, z_V, (t_peak, z_peak, t_share, z_share, -offset))


@part
def _slopes(z_V: Any, inverse_cap: float) -> Any:
    """Derivatives of bent logits with respect to the scores before."""
    slope_V = np.empty(len(z_V), np.float32)
    for v in range(len(z_V)):
        bent = z_V[v] * inverse_cap
        slope_V[v] = float32(1) - bent * bent
    return slope_V


@part
def _to_forward_gradient(z_V: Any, t_V: Any, softmaxes: Any, weight: float) -> None:
    z_peak, t_peak, z_share, t_share, _ = softmaxes
    for v in range(len(z_V)):
        q, p = exp_or_nan(z_V[v] - z_peak) * z_share, exp_or_nan(t_V[v] - t_peak) * t_share
        z_V[v] = weight * (q - p)


@part
def _to_reverse_gradient(z_V: Any, t_V: Any, softmaxes: Any, weight: float, divergence: float) -> None:
    z_peak, _, z_share, _, offset = softmaxes
    for v in range(len(z_V)):
        below = z_V[v] - z_peak
        near = weight * exp_or_nan(below) * z_share * (z_V[v] - t_V[v] + offset - divergence)
        z_V[v] = float32(0) if below < float32(-_LEAST) else near


@part
def _to_variation_gradient(z_V: Any, t_V: Any, softmaxes: Any, weight: float, mean: float) -> None:
    z_peak, _, z_share, _, offset = softmaxes
    for v in range(len(z_V)):
        above = float32(1) if z_V[v] - t_V[v] + offset > float32(0) else float32(0)
        z_V[v] = weight * exp_or_nan(z_V[v] - z_peak) * z_share * (above - mean)
