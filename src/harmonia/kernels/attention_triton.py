"""Attention over the paged cache on a GPU: which kernel serves which tokens of a batch.

Shapes: T tokens, S sequences, H query heads, G key/value heads, D head size, N blocks, P tokens per block, I tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harmonia.kernels import gpu
from harmonia.kernels.attention_decode_triton import decode_attention
from harmonia.kernels.attention_prefill_triton import (
    LARGE_TILE,
    Keys,
    PrefillChoice,
    prefill_attention,
    prefill_choice,
    prefill_tiles,
    tiles_on_device,
)
from harmonia.kernels.packed_attention_cuda import cudnn_usable, packed_attention_cudnn

if TYPE_CHECKING:
    from harmonia.kernels.pages import PagedLayout

_LONG_PROMPT = 2048  # tokens


def paged_attention_triton(
    q_THD: Tensor, k_NPGD: Tensor, v_NPGD: Tensor, layout: PagedLayout, scale: float, window: int
) -> Tensor:
    """What `paged_attention` says: decodes split over their cache, others in tiles of queries; all so if invariant.

    Long prompts without a cached prefix take cuDNN's kernel, which reads this step's own keys and values.
    """
    assert k_NPGD.is_contiguous() and v_NPGD.is_contiguous(), "pages of a cache lie one after another"
    heads, size = q_THD.shape[1:]
    if q_THD.stride(2) != 1 or q_THD.stride(1) != size:
        q_THD = q_THD.contiguous()
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    if not layout.invariant:
        decode_attention(q_THD, k_NPGD, v_NPGD, layout, scale, window, out_THD=out_THD)
        if _has_long_prompts_only(layout) and cudnn_usable(_prompts(layout), window, q_THD, k_NPGD[0], v_NPGD[0]):
            own_T, decodes = layout.slots_T[layout.num_decodes :], layout.num_decodes
            k_TGD, v_TGD = (x_NPGD.flatten(0, 1).index_select(0, own_T) for x_NPGD in (k_NPGD, v_NPGD))
            prompts_THD, _ = packed_attention_cudnn(q_THD[decodes:], k_TGD, v_TGD, _prompts(layout), scale)
            return prompts_THD if decodes == 0 else torch.cat((out_THD[:decodes], prompts_THD))
    if layout.invariant or layout.num_decodes < len(q_THD):
        sharing = heads // k_NPGD.shape[2]
        programs = (len(q_THD) - layout.num_decodes) * heads / LARGE_TILE / gpu.num_processors(q_THD.device)
        choice = prefill_choice(q_THD, sharing, invariant=layout.invariant, programs=programs)
        keys = Keys(k_NPGD, v_NPGD, layout.blocks_B, layout.block_starts_S, layout.context_lens_S)
        tiles_I4 = _tiles(layout, choice, sharing)
        prefill_attention(q_THD, keys, tiles_I4, choice, scale, window, invariant=layout.invariant, out_THD=out_THD)
    return out_THD


def _prompts(layout: PagedLayout) -> tuple[int, ...]:
    return layout.query_lens[layout.num_decodes :]


def _has_long_prompts_only(layout: PagedLayout) -> bool:
    """Whether all that are no decodes begin in this step and are long enough for cuDNN's preparations."""
    prompts = _prompts(layout)
    return prompts == layout.context_lens[layout.num_decodes :] and min(prompts, default=0) >= _LONG_PROMPT


def _tiles(layout: PagedLayout, choice: PrefillChoice, sharing: int) -> Tensor:
    """Tiles of queries, without the decodes unless those must be treated alike; made once for all layers."""
    queries = choice.rows // sharing
    key = ("tiles", queries)
    if key not in layout.derived:
        if layout.num_decodes == len(layout.slots_T):
            # Made on the device: a graph is captured without the host's memory.
            row_S = torch.arange(layout.num_decodes, dtype=torch.int32, device=layout.slots_T.device)
            one_S = torch.ones_like(row_S)
            tiles_I4 = torch.stack((row_S, row_S, one_S, one_S), dim=1)
        elif not layout.query_lens:
            tiles_I4 = tiles_on_device(layout.query_starts_S1, len(layout.slots_T), queries)
        else:
            first = 0 if layout.invariant else layout.num_decodes
            tiles_I4 = prefill_tiles(layout.query_lens, layout.context_lens, queries, first)
            tiles_I4 = tiles_I4.to(layout.slots_T.device, non_blocking=True)
        layout.derived[key] = tiles_I4
    return layout.derived[key]
