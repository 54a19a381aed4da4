"""Attention of packed sequences in half precision on a GPU: one call of the flash kernel that torch brings.

Shapes: T tokens of the pack, S sequences, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from harmonia.kernels.attention import NO_WINDOW

_MAX_HEAD_SIZE = 256
_NO_DROPOUT = 0.0


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


def _options(scale: float, window: int) -> dict[str, Any]:
    """Windows here count the tokens before the own one."""
    return {"scale": scale} if window == NO_WINDOW else {"scale": scale, "window_size_left": window - 1}


@lru_cache(maxsize=4)
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each sequence begins, and where the last one ends; made once for all layers."""
    ends = torch.tensor((0, *lengths)).cumsum(0)
    return ends.to(torch.int32).to(device)
