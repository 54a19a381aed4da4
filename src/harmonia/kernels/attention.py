"""Attention over a paged key/value cache.

Shapes: T tokens of the batch, S sequences, H query heads, G key/value heads, D head size, N blocks, P tokens per block,
B blocks of all sequences of the batch, L queries of a sequence, C tokens of its context.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from harmonia.kernels import gpu, native
from harmonia.kernels.attention_native import paged_attention_native, write_cache_native
from harmonia.kernels.native import Impl
from harmonia.kernels.pages import NO_WINDOW, LayerCache, PagedLayout


def write_cache(k_TGD: Tensor, v_TGD: Tensor, cache: LayerCache, slots_T: Tensor, impl: Impl = "auto") -> None:
    """Put this step's keys and values where `slots_T` says."""
    if impl == "native" or (impl == "auto" and native.usable(k_TGD, v_TGD, cache.k_NPGD)):
        write_cache_native(k_TGD, v_TGD, cache.k_NPGD, cache.v_NPGD, slots_T)
        return
    cache.k_NPGD.flatten(0, 1).index_copy_(0, slots_T.long(), k_TGD)
    cache.v_NPGD.flatten(0, 1).index_copy_(0, slots_T.long(), v_TGD)


def paged_attention(
    q_THD: Tensor, cache: LayerCache, layout: PagedLayout, scale: float, window: int, impl: Impl = "auto"
) -> Tensor:
    """Causal attention of each token over its sequence's cached tokens, its own included: out_THD.

    window: a token sees this many tokens at most, itself included; 0 sees all.
    """
    if impl == "native" or (impl == "auto" and q_THD.shape[2] % 16 == 0 and native.usable(q_THD, cache.k_NPGD)):
        return paged_attention_native(
            q_THD,
            cache.k_NPGD,
            cache.v_NPGD,
            layout.blocks_B,
            layout.block_starts_S,
            layout.query_lens,
            layout.context_lens,
            scale,
            window,
        )
    if impl == "triton" or (impl == "auto" and gpu.usable(q_THD, cache.k_NPGD)):
        from harmonia.kernels.attention_triton import paged_attention_triton  # a CPU install has no Triton

        return paged_attention_triton(q_THD, cache.k_NPGD, cache.v_NPGD, layout, scale, window)
    out_THD = torch.empty_like(q_THD)
    start = 0
    first_blocks = layout.block_starts_S.tolist()
    for first, num_queries, context_len in zip(first_blocks, layout.query_lens, layout.context_lens, strict=True):
        k_CGD, v_CGD = _gather(cache, layout.blocks_B[first:], context_len)
        stop = start + num_queries
        out_THD[start:stop] = dense_attention(q_THD[start:stop], k_CGD, v_CGD, scale, window)
        start = stop
    return out_THD


def dense_attention(q_LHD: Tensor, k_CGD: Tensor, v_CGD: Tensor, scale: float, window: int) -> Tensor:
    """Causal attention of the last L of C tokens over all C: out_LHD."""
    num_queries, context_len = q_LHD.shape[0], k_CGD.shape[0]
    positions_L = torch.arange(context_len - num_queries, context_len, device=q_LHD.device)
    distance_LC = positions_L[:, None] - torch.arange(context_len, device=q_LHD.device)
    visible_LC = distance_LC >= 0
    if window != NO_WINDOW:
        visible_LC &= distance_LC < window
    out_HLD = F.scaled_dot_product_attention(
        q_LHD.transpose(0, 1)[None],
        k_CGD.transpose(0, 1)[None],
        v_CGD.transpose(0, 1)[None],
        attn_mask=visible_LC,
        scale=scale,
        enable_gqa=True,
    )[0]
    return out_HLD.transpose(0, 1)


def _gather(cache: LayerCache, blocks_B: Tensor, context_len: int) -> tuple[Tensor, Tensor]:
    block_size = cache.k_NPGD.shape[1]
    blocks = blocks_B[: -(-context_len // block_size)].long()
    k_CGD = cache.k_NPGD[blocks].flatten(0, 1)[:context_len]
    return k_CGD, cache.v_NPGD[blocks].flatten(0, 1)[:context_len]
