"""Matrix products with a weight held in one of several forms, with and without gradients.

Shapes: T tokens, K input features, N output features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from harmonia.kernels import native
from harmonia.kernels.lora import (
    LoraSegment,
    LoraTerms,
    PlacedLora,
    add_lora,
    lora_grads,
    lora_leaves,
    lora_terms,
)
from harmonia.kernels.matmul_grad import add_rows_grad, input_grad, is_fast, weight_grad
from harmonia.kernels.matmul_native import multiply_dense, multiply_int8
from harmonia.kernels.native import Impl
from harmonia.kernels.weight import HAS_ONEDNN, DenseWeight, Int8Weight, Weight

__all__ = ["DenseWeight", "Int8Weight", "Weight", "adapted_matmul", "matmul", "weight_rows"]


def matmul(x_TK: Tensor, weight: Weight, bias_N: Tensor | None = None, impl: Impl = "auto") -> Tensor:
    """x W^T + b: y_TN. Gradients reach x, the leaf of a trained weight, and a bias that requires them."""
    return adapted_matmul(x_TK, weight, bias_N, impl=impl)


def adapted_matmul(
    x_TK: Tensor,
    weight: Weight,
    bias_N: Tensor | None = None,
    placed: Sequence[PlacedLora] = (),
    segments: Sequence[LoraSegment] = (),
    impl: Impl = "auto",
) -> Tensor:
    """x W^T + b, plus what the adapters of the segments add to the parts of the output: y_TN.

    The backward pass keeps x if a weight or an adapter is trained, else nothing. Gradients of weights are fp32.
    """
    if torch.is_grad_enabled():
        terms = lora_terms(placed, segments)
        call = _Call(weight, placed, segments, terms, impl)
        leaves = weight.leaf, bias_N, *lora_leaves(terms)
        if x_TK.requires_grad or any(leaf is not None and leaf.requires_grad for leaf in leaves):
            y_TN: Tensor = _AdaptedMatmul.apply(x_TK, call, *leaves)  # type: ignore[no-untyped-call]
            return y_TN
    return _forward(x_TK, weight, bias_N, placed, segments, impl)


def weight_rows(weight: Weight, ids_T: Tensor) -> Tensor:
    """Rows by index: rows_TK. A trained weight's gradient is added to its leaf's, without one of the weight's size."""
    if weight.leaf is None or not torch.is_grad_enabled():
        return weight.rows(ids_T)
    rows_TK: Tensor = _Rows.apply(ids_T, weight, weight.leaf)  # type: ignore[no-untyped-call]
    return rows_TK


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids_T: Tensor, weight: DenseWeight, leaf: Tensor) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(ids_T)
        return weight.rows(ids_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_TK: Tensor) -> tuple[None, None, None]:
        add_rows_grad(ctx.saved_tensors[0], dx_TK, ctx.weight)
        return None, None, None


class _Call(NamedTuple):
    weight: Weight
    placed: Sequence[PlacedLora]
    segments: Sequence[LoraSegment]
    terms: list[LoraTerms]
    impl: Impl


class _AdaptedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TK: Tensor, call: _Call, leaf: Tensor | None, bias_N: Tensor | None, *low_rank: Tensor
    ) -> Tensor:
        ctx.call = call
        _, _, trains_weight, _, *trains_low_rank = ctx.needs_input_grad
        if trains_weight or any(trains_low_rank):
            ctx.save_for_backward(x_TK)
        return _forward(x_TK, call.weight, bias_N, call.placed, call.segments, call.impl)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TN: Tensor) -> tuple[Tensor | None, ...]:
        weight, terms = ctx.call.weight, ctx.call.terms
        needs_x, _, trains_weight, trains_bias, *_ = ctx.needs_input_grad
        x_TK = ctx.saved_tensors[0] if ctx.saved_tensors else None
        dy_TN, fast = dy_TN.contiguous(), is_fast(dy_TN, ctx.call.impl)
        dx_TK = input_grad(dy_TN, weight, fast=fast) if needs_x else None
        low_rank = lora_grads(x_TK, dy_TN, dx_TK, terms, fast=fast)
        dleaf = dbias_N = None
        if trains_weight:
            assert x_TK is not None
            dleaf = weight_grad(x_TK, dy_TN, weight, fast=fast)
        if trains_bias:
            dbias_N = dy_TN.sum(0, dtype=torch.float32)
        return dx_TK, None, dleaf, dbias_N, *low_rank


def _forward(
    x_TK: Tensor,
    weight: Weight,
    bias_N: Tensor | None,
    placed: Sequence[PlacedLora],
    segments: Sequence[LoraSegment],
    impl: Impl,
) -> Tensor:
    y_TN = _multiply(x_TK, weight, bias_N, impl)
    if segments:
        for start, size, part in placed:
            add_lora(y_TN[:, start : start + size], x_TK, part.a_RK, part.b_RN, part.rows_of_slot, segments)
    return y_TN


def _multiply(x_TK: Tensor, weight: Weight, bias_N: Tensor | None, impl: Impl) -> Tensor:
    fast = impl == "native" or (impl == "auto" and native.usable(x_TK))
    if isinstance(weight, DenseWeight):
        if not fast or not HAS_ONEDNN:
            return F.linear(x_TK, weight.dense(), bias_N)
        weight.pack()
        return multiply_dense(x_TK.contiguous(), weight, bias_N)
    if fast:
        y_TN = multiply_int8(x_TK.contiguous(), weight)
        return y_TN if bias_N is None else y_TN.add_(bias_N)
    y_TN = F.linear(x_TK, weight.weight_NK.to(x_TK.dtype)) * weight.scale_N.to(x_TK.dtype)
    return y_TN if bias_N is None else y_TN + bias_N
