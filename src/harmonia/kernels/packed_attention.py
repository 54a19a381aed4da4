"""Causal attention of several sequences packed in one row of tokens, for training: forward and backward.

fp32 on a CPU is compiled, half precision on a GPU takes the kernels that torch brings; the eager version takes
everything. The invariant form is for the forward pass: it yields the bits that serving computes.

Shapes: T tokens of the pack, H query heads, G key/value heads, R query heads that share one, D head size,
Q queries of a chunk, C keys that they may see.

Kept for backward: queries, keys, values, the output, and the logarithm of each softmax's denominator, from which
probabilities are computed anew (Dao et al., FlashAttention, 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from harmonia.kernels import gpu, native
from harmonia.kernels.again import is_made, keep, kept
from harmonia.kernels.attention_native import packed_attention_native
from harmonia.kernels.native import Impl
from harmonia.kernels.packed_attention_cuda import (
    cudnn_usable,
    flash_usable,
    packed_attention_backward_cudnn,
    packed_attention_backward_flash,
    packed_attention_cudnn,
    packed_attention_flash,
)
from harmonia.kernels.packed_attention_native import packed_attention_backward_native
from harmonia.kernels.pages import NO_WINDOW

_QUERIES_OF_CHUNK = 256  # scores of so many queries exist at a time


def packed_attention(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int,
    impl: Impl = "auto",
    *,
    invariant: bool = False,
) -> Tensor:
    """Each token attends to its own sequence up to itself: out_THD.

    lengths: tokens of each sequence, which lie side by side and sum to T.
    window: a token sees this many tokens at most, itself included; 0 sees all.
    invariant: a token's result is the same bits in any pack, and those of `paged_attention` with an invariant layout.
    """
    assert sum(lengths) == q_THD.shape[0], "lengths must sum to the number of tokens"
    if torch.is_grad_enabled() and (q_THD.requires_grad or k_TGD.requires_grad or v_TGD.requires_grad):
        return _PackedAttention.apply(  # type: ignore[no-untyped-call]
            q_THD, k_TGD, v_TGD, lengths, scale, window, impl, invariant
        )
    return _forward(q_THD, k_TGD, v_TGD, lengths, scale, window, impl, invariant)[0]


class _PackedAttention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THD: Tensor,
        k_TGD: Tensor,
        v_TGD: Tensor,
        lengths: tuple[int, ...],
        scale: float,
        window: int,
        impl: Impl,
        invariant: bool,
    ) -> Tensor:
        if not is_made(v_TGD):  # a slice would keep the whole projection, unless what made it does so anyway
            v_TGD = v_TGD.contiguous()
        out_THD, lse_HT = _forward(q_THD, k_TGD, v_TGD, lengths, scale, window, impl, invariant)
        keep(ctx, q_THD, k_TGD, v_TGD, out_THD, lse_HT)
        ctx.call = (lengths, scale, window, impl)
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_THD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None, None]:
        q_THD, k_TGD, v_TGD, out_THD, lse_HT = kept(ctx)
        lengths, scale, window, impl = ctx.call
        given = _backward(q_THD, k_TGD, v_TGD, out_THD, lse_HT, d_out_THD, lengths, scale, window, impl)
        return *given, None, None, None, None, None


def _forward(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int,
    impl: Impl,
    invariant: bool,
) -> tuple[Tensor, Tensor]:
    """(out_THD, lse_HT): the output and the logarithm of each sum of exponentials in fp32."""
    if impl == "native" or (impl == "auto" and _fits(q_THD, k_TGD, v_TGD)):
        return packed_attention_native(q_THD, k_TGD, v_TGD, lengths, scale, window)
    if impl == "auto" and not invariant and flash_usable(q_THD, k_TGD, v_TGD):
        if cudnn_usable(lengths, window, q_THD, k_TGD, v_TGD):
            return packed_attention_cudnn(q_THD, k_TGD, v_TGD, lengths, scale)
        return packed_attention_flash(q_THD, k_TGD, v_TGD, lengths, scale, window)
    if impl == "triton" or (impl == "auto" and gpu.usable(q_THD, k_TGD, v_TGD)):
        from harmonia.kernels.packed_attention_triton import packed_attention_triton  # a CPU install has no Triton

        return packed_attention_triton(q_THD, k_TGD, v_TGD, lengths, scale, window, invariant=invariant)
    return _forward_eager(q_THD, k_TGD, v_TGD, lengths, scale, window)


def _backward(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    d_out_THD: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int,
    impl: Impl,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    if impl == "native" or (impl == "auto" and _fits(q_THD, k_TGD, v_TGD, d_out_THD)):
        return packed_attention_backward_native(q_THD, k_TGD, v_TGD, out_THD, lse_HT, d_out_THD, lengths, scale, window)
    if impl != "eager" and flash_usable(q_THD, k_TGD, v_TGD):
        if cudnn_usable(lengths, window, q_THD, k_TGD, v_TGD, backward=True):
            return packed_attention_backward_cudnn(q_THD, k_TGD, v_TGD, out_THD, lse_HT, d_out_THD, lengths, scale)
        return packed_attention_backward_flash(q_THD, k_TGD, v_TGD, out_THD, lse_HT, d_out_THD, lengths, scale, window)
    return _backward_eager(q_THD, k_TGD, v_TGD, out_THD, lse_HT, d_out_THD, lengths, scale, window)


def _fits(*tensors: Tensor) -> bool:
    return tensors[0].shape[2] % 16 == 0 and native.usable(*tensors)


def _forward_eager(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, lengths: tuple[int, ...], scale: float, window: int
) -> tuple[Tensor, Tensor]:
    num_tokens, num_heads, _ = q_THD.shape
    kv_heads = k_TGD.shape[1]
    out_THD = torch.empty_like(q_THD, memory_format=torch.contiguous_format)
    lse_TH = torch.empty(num_tokens, num_heads, dtype=torch.float32, device=q_THD.device)
    for queries, keys in _chunks(lengths, window):
        q_QGRD = q_THD[queries].float().unflatten(1, (kv_heads, -1))
        scores_QGRC = _scores(q_QGRD, k_TGD[keys].float(), queries, keys, scale, window)
        lse_QGR = scores_QGRC.logsumexp(-1)
        p_QGRC = (scores_QGRC - lse_QGR[..., None]).exp()
        out_THD[queries] = torch.einsum("qgrc,cgd->qgrd", p_QGRC, v_TGD[keys].float()).flatten(1, 2).to(q_THD.dtype)
        lse_TH[queries] = lse_QGR.flatten(1)
    return out_THD, lse_TH.T.contiguous()


def _backward_eager(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    d_out_THD: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    kv_heads = k_TGD.shape[1]
    d_q_THD, d_k_TGD, d_v_TGD = (torch.zeros(x.shape, device=x.device) for x in (q_THD, k_TGD, v_TGD))
    for queries, keys in _chunks(lengths, window):
        k_CGD, v_CGD = k_TGD[keys].float(), v_TGD[keys].float()
        q_QGRD, out_QGRD, d_out_QGRD = (
            x_THD[queries].float().unflatten(1, (kv_heads, -1)) for x_THD in (q_THD, out_THD, d_out_THD)
        )
        lse_QGR = lse_HT[:, queries].T.unflatten(1, (kv_heads, -1))
        p_QGRC = (_scores(q_QGRD, k_CGD, queries, keys, scale, window) - lse_QGR[..., None]).exp()
        d_p_QGRC = torch.einsum("qgrd,cgd->qgrc", d_out_QGRD, v_CGD)
        d_scores_QGRC = p_QGRC * (d_p_QGRC - (d_out_QGRD * out_QGRD).sum(-1, keepdim=True)) * scale
        d_v_TGD[keys] += torch.einsum("qgrc,qgrd->cgd", p_QGRC, d_out_QGRD)
        d_k_TGD[keys] += torch.einsum("qgrc,qgrd->cgd", d_scores_QGRC, q_QGRD)
        d_q_THD[queries] = torch.einsum("qgrc,cgd->qgrd", d_scores_QGRC, k_CGD).flatten(1, 2)
    return d_q_THD.to(q_THD.dtype), d_k_TGD.to(k_TGD.dtype), d_v_TGD.to(v_TGD.dtype)


def _chunks(lengths: tuple[int, ...], window: int) -> Iterator[tuple[slice, slice]]:
    """(tokens, tokens that some of them see) of some consecutive queries of one sequence, up to all are done."""
    start = 0
    for length in lengths:
        for first in range(start, start + length, _QUERIES_OF_CHUNK):
            stop = min(first + _QUERIES_OF_CHUNK, start + length)
            yield slice(first, stop), slice(start if window == NO_WINDOW else max(start, first + 1 - window), stop)
        start += length


def _scores(q_QGRD: Tensor, k_CGD: Tensor, queries: slice, keys: slice, scale: float, window: int) -> Tensor:
    """Scaled products in fp32, minus infinity where a key is not seen."""
    query_Q = torch.arange(queries.start, queries.stop, device=q_QGRD.device)
    distance_QC = query_Q[:, None] - torch.arange(keys.start, keys.stop, device=q_QGRD.device)
    hidden_QC = distance_QC < 0
    if window != NO_WINDOW:
        hidden_QC |= distance_QC >= window
    scores_QGRC = torch.einsum("qgrd,cgd->qgrc", q_QGRD, k_CGD) * scale
    return scores_QGRC.masked_fill_(hidden_QC[:, None, None], -torch.inf)
