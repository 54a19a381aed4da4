"""From the fused projection of queries, keys and values to heads: normalised where the family does, and rotated.

On a GPU this is one launch, that for serving writes keys and values into the paged cache on the way. Elsewhere it is
the operations of norm.py, rope.py and attention.py one after another, which are also its specification.

Shapes: T tokens, H query heads, G key/value heads, X = H + 2 G heads of the projection, D head size, F = X D features,
C positions of the table, N blocks, P tokens per block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from harmonia.kernels import gpu
from harmonia.kernels.attention import write_cache
from harmonia.kernels.native import Impl
from harmonia.kernels.norm import rms_norm
from harmonia.kernels.pages import LayerCache
from harmonia.kernels.projection import Heads
from harmonia.kernels.rope import apply_rope


def heads_into_cache(
    qkv_TF: Tensor, heads: Heads, positions_T: Tensor, cache: LayerCache, slots_T: Tensor, impl: Impl = "auto"
) -> Tensor:
    """Keys and values to their slots of the cache; the queries: q_THD.

    A slot of -1, as rows have that only fill up a captured graph, writes nothing; compiled for a GPU only.
    """
    if impl == "triton" or (impl == "auto" and gpu.usable(qkv_TF, cache.k_NPGD)):
        from harmonia.kernels.heads_triton import split_heads  # imported where it runs: a CPU install has no Triton

        return split_heads(qkv_TF, heads, positions_T, (cache.k_NPGD, cache.v_NPGD, slots_T))[0]
    q_THD, k_TGD, v_TGD = _composed(qkv_TF, heads, positions_T, impl)
    write_cache(k_TGD, v_TGD, cache, slots_T, impl)
    return q_THD


def rotated_heads(
    qkv_TF: Tensor, heads: Heads, positions_T: Tensor, impl: Impl = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """(q_THD, k_TGD, v_TGD). The values may be a slice of the projection."""
    if impl != "triton" and not (impl == "auto" and gpu.usable(qkv_TF)):
        return _composed(qkv_TF, heads, positions_T, impl)
    if torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (qkv_TF, heads.q_norm_D, heads.k_norm_D)
    ):
        return _RotatedHeads.apply(qkv_TF, heads.q_norm_D, heads.k_norm_D, heads, positions_T)  # type: ignore[no-untyped-call]
    return _split(qkv_TF, heads, positions_T)


class _RotatedHeads(Function):
    """Keeps the projection if there is a norm, of which the values are then a slice; otherwise nothing of its size."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv_TF: Tensor,
        q_norm_D: Tensor | None,
        k_norm_D: Tensor | None,
        heads: Heads,
        positions_T: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept_TF = None if q_norm_D is None else qkv_TF
        ctx.save_for_backward(kept_TF, q_norm_D, k_norm_D, heads.cos_sin_CD, positions_T)
        ctx.sizes = heads.num_heads, heads.num_kv_heads, heads.head_dim, heads.eps
        if kept_TF is not None:
            ctx.again = _again
        return _split(qkv_TF, heads, positions_T)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_q_THD: Tensor, d_k_TGD: Tensor, d_v_TGD: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        from harmonia.kernels.heads_triton import split_heads_backward

        qkv_TF, q_norm_D, k_norm_D, cos_sin_CD, positions_T = ctx.saved_tensors
        num_heads, num_kv_heads, head_dim, eps = ctx.sizes
        heads = Heads(num_heads, num_kv_heads, head_dim, cos_sin_CD, q_norm_D, k_norm_D, eps)
        train_norms = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        given = split_heads_backward((d_q_THD, d_k_TGD, d_v_TGD), qkv_TF, heads, positions_T, train_norms)
        return *given, None, None


def _again(ctx: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The heads from the projection that is kept; see again.py."""
    qkv_TF, q_norm_D, k_norm_D, cos_sin_CD, positions_T = ctx.saved_tensors
    num_heads, num_kv_heads, head_dim, eps = ctx.sizes
    return _split(qkv_TF, Heads(num_heads, num_kv_heads, head_dim, cos_sin_CD, q_norm_D, k_norm_D, eps), positions_T)


def _split(qkv_TF: Tensor, heads: Heads, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if qkv_TF.is_meta:  # when the memory of a GPU is planned
        q_TF, k_TF, v_TF = qkv_TF.split(
            [heads.num_heads * heads.head_dim, *[heads.num_kv_heads * heads.head_dim] * 2], 1
        )
        v_TF = torch.empty_like(v_TF) if heads.q_norm_D is None else v_TF
        q_THD, k_TGD, v_TGD = (x_TF.unflatten(1, (-1, heads.head_dim)) for x_TF in (q_TF, k_TF, v_TF))
        return torch.empty_like(q_THD), torch.empty_like(k_TGD), v_TGD
    from harmonia.kernels.heads_triton import split_heads

    return split_heads(qkv_TF, heads, positions_T)


def _composed(qkv_TF: Tensor, heads: Heads, positions_T: Tensor, impl: Impl) -> tuple[Tensor, Tensor, Tensor]:
    """One operation after another. Splits rather than slices: the gradient of a slice is as large as its source."""
    num_heads, num_kv_heads, table_CD = heads.num_heads, heads.num_kv_heads, heads.cos_sin_CD
    qkv_TXD = qkv_TF.unflatten(-1, (-1, heads.head_dim))
    if heads.q_norm_D is None or heads.k_norm_D is None:
        qk_TXD, v_TGD = qkv_TXD.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
        q_THD, k_TGD = apply_rope(qk_TXD, table_CD, positions_T, impl).split((num_heads, num_kv_heads), dim=1)
        return q_THD, k_TGD, v_TGD
    q_THD, k_TGD, v_TGD = qkv_TXD.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    q_THD = apply_rope(rms_norm(q_THD, heads.q_norm_D, heads.eps, impl), table_CD, positions_T, impl)
    return q_THD, apply_rope(rms_norm(k_TGD, heads.k_norm_D, heads.eps, impl), table_CD, positions_T, impl), v_TGD
