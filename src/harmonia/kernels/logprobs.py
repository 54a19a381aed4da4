"""The one definition of a token's log-probability: natural, untempered, over the full vocabulary, in fp32.

Shapes: R rows, V vocabulary, N best candidates, B rows of a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harmonia.kernels import gpu, native
from harmonia.kernels.native import Impl, kernel
from harmonia.kernels.native_code import exp, float32, float32s, float64, float64s, int64s, part, share

_LOGITS_PER_THREAD = 32_768
_BLOCK_BYTES = 8 << 20  # of logits that eager steps hold a second time
_LEAST = 87.0  # so far below, a token adds less than 1e-35; a masked one is infinitely far below
_RUN = 1024  # summed in fp32 before it is added in fp64


def token_logprobs(logits_RV: Tensor, ids_R: Tensor, log_sum_R: Tensor | None = None) -> Tensor:
    """Log-probability of one token per row: logprobs_R. `log_sum_R` are the rows' `log_sums`, if they are known."""
    logits_RV = logits_RV.float()
    if log_sum_R is None:
        return summed_logprobs(logits_RV, ids_R)[1]
    return logits_RV.gather(1, ids_R[:, None])[:, 0] - log_sum_R


def summed_logprobs(logits_RV: Tensor, ids_R: Tensor, impl: Impl = "auto") -> tuple[Tensor, Tensor]:
    """(`log_sums`, `token_logprobs`) of fp32 logits: on a GPU in one pass over them."""
    if not _is_triton(logits_RV, impl):
        log_sum_R = log_sums(logits_RV, impl)
        return log_sum_R, token_logprobs(logits_RV, ids_R, log_sum_R)
    # imported where it runs: a CPU install has no Triton
    from harmonia.kernels import logprobs_triton

    log_sum_R, logprob_R = logprobs_triton.log_sums(logits_RV, ids_R.contiguous())
    assert logprob_R is not None
    return log_sum_R, logprob_R


def log_sums(logits_RV: Tensor, impl: Impl = "auto") -> Tensor:
    """Logarithm of each row's sum of exponentials, what a logit exceeds its log-probability by: log_sum_R in fp32."""
    if _is_triton(logits_RV, impl):
        from harmonia.kernels import logprobs_triton

        return logprobs_triton.log_sums(logits_RV)[0]
    if not _is_native(logits_RV, impl):
        return torch.logsumexp(logits_RV, dim=-1)
    largest_R, log_sum_R = logits_RV.amax(dim=-1), logits_RV.new_empty(logits_RV.shape[0])
    addresses = logits_RV.data_ptr(), largest_R.data_ptr(), log_sum_R.data_ptr()
    _log_sum_rows.run(_threads(logits_RV), *addresses, *logits_RV.shape)
    return log_sum_R


def entropies(logits_RV: Tensor, log_sum_R: Tensor, impl: Impl = "auto") -> Tensor:
    """Entropy of each row's distribution in nats, the mean of how far logits are below the log-sum: entropy_R."""
    if _is_triton(logits_RV, impl):
        from harmonia.kernels import logprobs_triton

        return logprobs_triton.entropies(logits_RV, log_sum_R)
    if not _is_native(logits_RV, impl):
        below_RV = log_sum_R[:, None] - logits_RV
        return torch.where(below_RV > _LEAST, 0, torch.exp(-below_RV) * below_RV).sum(-1)
    entropy_R = torch.empty_like(log_sum_R)
    addresses = logits_RV.data_ptr(), log_sum_R.data_ptr(), entropy_R.data_ptr()
    _entropy_rows.run(_threads(logits_RV), *addresses, *logits_RV.shape)
    return entropy_R


def logits_to_gradient(
    logits_RV: Tensor,
    ids_R: Tensor,
    log_sum_R: Tensor,
    dlogprobs_R: Tensor,
    softcap: float | None = None,
    impl: Impl = "auto",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The gradient of `token_logprobs` with respect to the logits, times `dlogprobs_R`: dlogits_RV in `dtype`.

    The logits are overwritten. In fp32 the result is their memory; on a GPU in half precision too, in steps of twice
    its row length. dlogit = dlogprob * (one-hot(id) - softmax). If logit = softcap * tanh(score / softcap), then with
    respect to the score: times 1 - (logit / softcap)^2.
    """
    ids_R, dlogprobs_R = ids_R.contiguous(), dlogprobs_R.contiguous()
    if _is_triton(logits_RV, impl):
        from harmonia.kernels import logprobs_triton

        return logprobs_triton.logits_to_gradient(logits_RV, ids_R, log_sum_R, dlogprobs_R, softcap, dtype)
    if not _is_native(logits_RV, impl):
        _to_gradient_eager(logits_RV, ids_R, log_sum_R, dlogprobs_R, softcap)
        return logits_RV.to(dtype)
    tensors = logits_RV, ids_R, log_sum_R, dlogprobs_R
    addresses = (tensor.data_ptr() for tensor in tensors)
    inverse_cap = 0.0 if softcap is None else 1 / softcap
    _gradient_rows.run(_threads(logits_RV), *addresses, *logits_RV.shape, inverse_cap)
    return logits_RV.to(dtype)


def top_logprobs(logits_RV: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    """The most likely tokens of each row, best first: (logprobs_RN, ids_RN)."""
    logits_RV = logits_RV.float()
    values_RN, ids_RN = logits_RV.topk(num_best, dim=-1)
    return values_RN - log_sums(logits_RV)[:, None], ids_RN


def _to_gradient_eager(
    logits_RV: Tensor, ids_R: Tensor, log_sum_R: Tensor, dlogprobs_R: Tensor, softcap: float | None
) -> None:
    num_rows, size = logits_RV.shape
    step = max(1, _BLOCK_BYTES // (4 * size))
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        logits_BV, d_B1, ids_B1 = logits_RV[rows], dlogprobs_R[rows, None], ids_R[rows, None]
        slope_BV = None if softcap is None else (logits_BV / softcap).square_().neg_().add_(1)
        logits_BV.sub_(log_sum_R[rows, None]).exp_().mul_(-d_B1).scatter_add_(1, ids_B1, d_B1)
        if slope_BV is not None:
            logits_BV.mul_(slope_BV)


def _is_native(logits_RV: Tensor, impl: Impl) -> bool:
    fits = native.usable(logits_RV) and logits_RV.is_contiguous()
    return impl == "native" or (impl == "auto" and fits)


def _is_triton(logits_RV: Tensor, impl: Impl) -> bool:
    fits = impl == "auto" and gpu.usable(logits_RV) and logits_RV.dtype is torch.float32
    return impl == "triton" or (fits and logits_RV.is_contiguous())


def _threads(logits_RV: Tensor) -> int:
    return native.threads_for(logits_RV.numel(), _LOGITS_PER_THREAD)


@kernel("qqqqq")
def _log_sum_rows(arguments: int, thread: int, num_threads: int) -> None:
    logits, largests, log_sums, rows, size = int64s(arguments, 5)
    log_sum_R = float32s(log_sums, rows)
    first, stop = share(rows, thread, num_threads)
    for row in range(first, stop):
        logits_V, largest = float32s(logits + 4 * row * size, size), float32s(largests, rows)[row]
        if largest == -math.inf:
            log_sum_R[row] = largest
            continue
        total = float64(0)
        for start in range(0, size, _RUN):
            run_V, sum_of_run = logits_V[start : min(start + _RUN, size)], float32(0)
            for v in range(len(run_V)):
                sum_of_run += exp_or_nan(run_V[v] - largest)
            total += float64(sum_of_run)
        log_sum_R[row] = float32(float64(largest) + math.log(total))


@kernel("qqqqq")
def _entropy_rows(arguments: int, thread: int, num_threads: int) -> None:
    logits, log_sums, entropies, rows, size = int64s(arguments, 5)
    log_sum_R, entropy_R = float32s(log_sums, rows), float32s(entropies, rows)
    first, stop = share(rows, thread, num_threads)
    for row in range(first, stop):
        logits_V, log_sum = float32s(logits + 4 * row * size, size), log_sum_R[row]
        entropy = float64(0)
        for start in range(0, size, _RUN):
            run_V, sum_of_run = logits_V[start : min(start + _RUN, size)], float32(0)
            for v in range(len(run_V)):
                below = log_sum - run_V[v]
                sum_of_run += float32(0) if below > float32(_LEAST) else exp_or_nan(-below) * below
            entropy += float64(sum_of_run)
        entropy_R[row] = float32(entropy)


@kernel("qqqqqqd")
def _gradient_rows(arguments: int, thread: int, num_threads: int) -> None:
    logits, ids, log_sums, dlogprobs, rows, size = int64s(arguments, 6)
    inverse_cap = float32(float64s(arguments, 7)[6])
    log_sum_R, dlogprob_R = float32s(log_sums, rows), float32s(dlogprobs, rows)
    first, stop = share(rows, thread, num_threads)
    for row in range(first, stop):
        logits_V, chosen = float32s(logits + 4 * row * size, size), int64s(ids, rows)[row]
        log_sum, dlogprob = log_sum_R[row], dlogprob_R[row]
        bent = logits_V[chosen] * inverse_cap
        slope = float32(1) - bent * bent
        if inverse_cap == 0:
            for v in range(size):
                logits_V[v] = -dlogprob * exp_or_nan(logits_V[v] - log_sum)
        else:
            for v in range(size):
                bent = logits_V[v] * inverse_cap
                logits_V[v] = -dlogprob * exp_or_nan(logits_V[v] - log_sum) * (float32(1) - bent * bent)
        logits_V[chosen] += dlogprob * slope


@part
def exp_or_nan(x: float) -> float:
    """Keeps NaN, so that a broken model is noticed."""
    y = exp(x)
    return y if x == x else x  # noqa: PLR0124
