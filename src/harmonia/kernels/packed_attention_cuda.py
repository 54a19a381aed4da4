"""Attention of packed sequences in half precision on a GPU: the kernels that torch brings.

Flash attention takes sequences of any lengths. cuDNN's is about 1.6 times as fast on an H100, but torch plans it anew
in each call (about 40 ms) unless all sequences are equally long; so they are filled up with zeros where that adds
little. Beside serving, which would wait for it, nothing is planned: what has no plan yet takes flash attention.
Zeros after the end of a sequence are seen by none of its tokens, and their own gradient is zero.

Shapes: T tokens of the pack, S sequences, L tokens of the longest one, rounded up, H query heads, G key/value heads,
D head size, X heads of either kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from harmonia.kernels import gpu
from harmonia.kernels.pages import NO_WINDOW

_MAX_HEAD_SIZE = 256
_MAX_CUDNN_HEAD_SIZE = 128
_CUDNN_LENGTHS = 512  # they are rounded up to multiples of this unless all are equal: a plan is kept for each
_CUDNN_GAIN = 1.25  # so much more work is done sooner there
_NO_DROPOUT = 0.0
_MAY_PLAN = ContextVar("harmonia_may_plan_attention", default=True)
_PLANNED: set[tuple[object, ...]] = set()


@contextmanager
def planning(allowed: bool) -> Iterator[None]:
    """Whether what runs inside may have cuDNN plan for shapes that are new."""
    token = _MAY_PLAN.set(allowed)
    try:
        yield
    finally:
        _MAY_PLAN.reset(token)


def flash_usable(*tensors: Tensor) -> bool:
    """Whether the kernel takes them: heads of queries, keys, values in half precision on a CUDA device."""
    size = tensors[0].shape[2]
    if size % 8 or size > _MAX_HEAD_SIZE or not tensors[0].shape[0]:
        return False
    return all(x_THD.is_cuda and x_THD.dtype in (torch.bfloat16, torch.float16) for x_THD in tensors)


def packed_attention_flash(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, lengths: tuple[int, ...], scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """(out_THD, lse_HT)."""
    starts_S, longest = _starts(lengths, q_THD.device), max(lengths)
    out_THD, lse_HT, *_ = torch.ops.aten._flash_attention_forward(
        q_THD, k_TGD, v_TGD, starts_S, starts_S, longest, longest, _NO_DROPOUT, True, False, **_options(scale, window)
    )
    return out_THD, lse_HT


def packed_attention_backward_flash(
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
    """Gradients of queries, keys and values."""
    starts_S, longest = _starts(lengths, q_THD.device), max(lengths)
    unused = torch.empty(2, dtype=torch.uint64, device=q_THD.device)  # the state of a generator for dropout
    d_q_THD, d_k_TGD, d_v_TGD = torch.ops.aten._flash_attention_backward(
        d_out_THD.contiguous(), q_THD, k_TGD, v_TGD, out_THD, lse_HT, starts_S, starts_S, longest, longest, _NO_DROPOUT,
        True, unused, unused, **_options(scale, window),
    )  # fmt: skip
    return d_q_THD, d_k_TGD, d_v_TGD


def cudnn_usable(
    lengths: tuple[int, ...], window: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, backward: bool = False
) -> bool:
    """Whether cuDNN takes them, is likely to be faster than flash attention, and has a plan or may make one."""
    length = _length(lengths)
    if window != NO_WINDOW or len(lengths) * length**2 > _CUDNN_GAIN * sum(n * n for n in lengths):
        return False
    if (
        q_THD.shape[2] > _MAX_CUDNN_HEAD_SIZE
        or not flash_usable(q_THD, k_TGD, v_TGD)
        or not gpu.is_hopper(q_THD.device)
    ):
        return False
    plan = backward, len(lengths), length, q_THD.shape[1:], k_TGD.shape[1:], q_THD.dtype, q_THD.device
    if _MAY_PLAN.get():
        _PLANNED.add(plan)
    return plan in _PLANNED


def packed_attention_cudnn(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, lengths: tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """(out_THD, lse_HT)."""
    q_SHLD, k_SGLD, v_SGLD = (_apart(x_TXD, lengths) for x_TXD in (q_THD, k_TGD, v_TGD))
    out_SHLD, lse_SHL1, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q_SHLD, k_SGLD, v_SGLD, None, True, _NO_DROPOUT, True, False, scale=scale
    )
    lse_TH = _together(lse_SHL1.reshape(*out_SHLD.shape[:3], 1), lengths)[..., 0]
    return _together(out_SHLD, lengths), lse_TH.T.contiguous()


def packed_attention_backward_cudnn(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    d_out_THD: Tensor,
    lengths: tuple[int, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    length = _length(lengths)
    d_out_SHLD, q_SHLD, k_SGLD, v_SGLD, out_SHLD = (
        _apart(x_TXD, lengths) for x_TXD in (d_out_THD.contiguous(), q_THD, k_TGD, v_TGD, out_THD)
    )
    lse_SHL1 = _apart(lse_HT.T[..., None], lengths).contiguous()
    unused = torch.empty((), dtype=torch.int64, device=q_THD.device)  # the state of a generator for dropout
    given = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        d_out_SHLD, q_SHLD, k_SGLD, v_SGLD, out_SHLD, lse_SHL1, unused, unused, None, None, None, length, length,
        _NO_DROPOUT, True, scale=scale,
    )  # fmt: skip
    d_q_THD, d_k_TGD, d_v_TGD = (_together(x_SXLD, lengths) for x_SXLD in given)
    return d_q_THD, d_k_TGD, d_v_TGD


def _length(lengths: tuple[int, ...]) -> int:
    """Tokens of each sequence once they are filled up; a batch of equal ones needs no filling."""
    if len(lengths) > 1 and min(lengths) == max(lengths):
        return lengths[0]
    return -(-max(lengths, default=0) // _CUDNN_LENGTHS) * _CUDNN_LENGTHS


def _apart(x_TXD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Each sequence by itself, filled up with zeros: x_SXLD, a view if they are full already."""
    length = _length(lengths)
    if len(x_TXD) < len(lengths) * length:
        apart_TXD = x_TXD.new_zeros(len(lengths) * length, *x_TXD.shape[1:])
        x_TXD = apart_TXD.index_copy_(0, _rows(lengths, x_TXD.device), x_TXD)
    return x_TXD.unflatten(0, (len(lengths), length)).transpose(1, 2)


def _together(x_SXLD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The tokens of all sequences one after another: x_TXD."""
    x_TXD = x_SXLD.transpose(1, 2).flatten(0, 1)
    return x_TXD if len(x_TXD) == sum(lengths) else x_TXD[_rows(lengths, x_TXD.device)]


@lru_cache(maxsize=4)
def _rows(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Of each token among sequences that are filled up; made once for all layers."""
    length = _length(lengths)
    rows_T = torch.cat([torch.arange(i * length, i * length + n) for i, n in enumerate(lengths)])
    return rows_T.to(device, non_blocking=True)


def _options(scale: float, window: int) -> dict[str, Any]:
    """Windows here count the tokens before the own one."""
    return {"scale": scale} if window == NO_WINDOW else {"scale": scale, "window_size_left": window - 1}


@lru_cache(maxsize=4)
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each sequence begins, and where the last one ends; made once for all layers."""
    ends = torch.tensor((0, *lengths)).cumsum(0)
    return ends.to(torch.int32).to(device, non_blocking=True)
