"""Attention of packed sequences on a GPU with the kernel that serves prompts: what is trained on is what was sampled.

Shapes: T tokens of the pack, S sequences, H query heads, G key/value heads, D head size, I tiles of queries.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from harmonia.kernels.attention_prefill_triton import Keys, prefill_attention, prefill_choice, prefill_tiles


def packed_attention_triton(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int,
    *,
    invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """(out_THD, lse_HT); if `invariant`, the output has the bits of `paged_attention` with an invariant layout."""
    q_THD, k_TGD, v_TGD = (_with_dense_heads(x_TXD) for x_TXD in (q_THD, k_TGD, v_TGD))
    num_tokens, heads, _ = q_THD.shape
    sharing = heads // k_TGD.shape[1]
    choice = prefill_choice(q_THD, sharing, invariant=invariant)
    lens_S, starts_S, tiles_I4 = _layout(lengths, choice.rows // sharing, q_THD.device)
    lse_HT = torch.empty(heads, num_tokens, dtype=torch.float32, device=q_THD.device)
    out_THD = prefill_attention(
        q_THD,
        Keys(k_TGD, v_TGD, None, starts_S, lens_S),
        tiles_I4,
        choice,
        scale,
        window,
        invariant=invariant,
        lse_HT=lse_HT,
    )
    return out_THD, lse_HT


def _with_dense_heads(x_TXD: Tensor) -> Tensor:
    """The tensor, or a copy if a token's features are not side by side; a slice of the fused projection is fine."""
    return x_TXD if x_TXD.stride(2) == 1 and x_TXD.stride(1) == x_TXD.shape[2] else x_TXD.contiguous()


@lru_cache(maxsize=4)
def _layout(lengths: tuple[int, ...], queries_per_tile: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(lengths, first tokens, tiles of queries); made once for all layers."""
    lens_S = torch.tensor(lengths, dtype=torch.int32)
    starts_S = (lens_S.cumsum(0) - lens_S).to(torch.int32)
    tiles_I4 = prefill_tiles(lengths, lengths, queries_per_tile, 0)
    lens_S, starts_S, tiles_I4 = (x.to(device, non_blocking=True) for x in (lens_S, starts_S, tiles_I4))
    return lens_S, starts_S, tiles_I4
