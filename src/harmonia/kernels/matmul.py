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

from harmonia.kernels import gpu, matmul_choices, native
from harmonia.kernels.activation import Activation, gated_activation
from harmonia.kernels.again import keep, kept
from harmonia.kernels.fp8 import fp8_linear
from harmonia.kernels.fp8_weight import Fp8Weight
from harmonia.kernels.lora import (
    LoraBatch,
    LoraTerms,
    PlacedLora,
    adapter_grads,
    add_adapters,
    lora_leaves,
    lora_terms,
)
from harmonia.kernels.matmul_choices import Choice
from harmonia.kernels.matmul_grad import add_rows_grad, input_grad, is_fast, leaf_grad
from harmonia.kernels.matmul_native import multiply_dense, multiply_int8
from harmonia.kernels.native import Impl
from harmonia.kernels.weight import HAS_ONEDNN, DenseWeight, Int8Weight, Weight

__all__ = [
    "DenseWeight",
    "Fp8Weight",
    "Int8Weight",
    "Weight",
    "adapted_matmul",
    "gated_matmul",
    "matmul",
    "weight_rows",
]

_WIDENED_BYTES = 64 << 20


def matmul(
    x_TK: Tensor,
    weight: Weight,
    bias_N: Tensor | None = None,
    impl: Impl = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x W^T + b: y_TN. Gradients reach x, the leaf of a trained weight, and a bias that requires them.

    Sums are fp32 and are rounded to `out_dtype`, that of x unless given: with fp32 not at all.
    """
    return adapted_matmul(x_TK, weight, bias_N, impl=impl, out_dtype=out_dtype)


def gated_matmul(
    x_TK: Tensor, weight: Weight, bias_N: Tensor | None, activation: Activation, impl: Impl = "auto"
) -> Tensor:
    """activation(gate) * up of the two halves of x W^T + b: one launch for few tokens on a GPU."""
    if not torch.is_grad_enabled() and isinstance(weight, Fp8Weight) and not weight.invariant:
        return fp8_linear(x_TK, weight, bias_N, impl, activation)
    if not torch.is_grad_enabled() and isinstance(weight, DenseWeight) and not weight.invariant:
        choice = _choice(x_TK, weight, impl)
        if choice is not None:
            return _triton_product(x_TK, weight, bias_N, choice, gate=activation)
    return gated_activation(matmul(x_TK, weight, bias_N, impl), activation)


def adapted_matmul(
    x_TK: Tensor,
    weight: Weight,
    bias_N: Tensor | None = None,
    placed: Sequence[PlacedLora] = (),
    adapters: LoraBatch | None = None,
    impl: Impl = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x W^T + b, plus what the adapters of the batch add to the parts of the output: y_TN.

    The backward pass keeps x if a weight or an adapter is trained, else nothing. Gradients of weights are fp32.
    """
    if torch.is_grad_enabled():
        terms = [] if adapters is None else lora_terms(placed, adapters.segments)
        call = _Call(weight, placed, adapters, terms, impl, out_dtype)
        leaves = weight.leaf, bias_N, *lora_leaves(terms)
        if x_TK.requires_grad or any(leaf is not None and leaf.requires_grad for leaf in leaves):
            y_TN: Tensor = _AdaptedMatmul.apply(x_TK, call, *leaves)  # type: ignore[no-untyped-call]
            return y_TN
    return _forward(x_TK, bias_N, _Call(weight, placed, adapters, [], impl, out_dtype))


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
    adapters: LoraBatch | None
    terms: list[LoraTerms]
    impl: Impl
    out_dtype: torch.dtype | None


class _AdaptedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TK: Tensor, call: _Call, leaf: Tensor | None, bias_N: Tensor | None, *low_rank: Tensor
    ) -> Tensor:
        ctx.call, ctx.dtype = call, x_TK.dtype
        _, _, trains_weight, _, *trains_low_rank = ctx.needs_input_grad
        if trains_weight or any(trains_low_rank):
            keep(ctx, x_TK)
        return _forward(x_TK, bias_N, call)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TN: Tensor) -> tuple[Tensor | None, ...]:
        call, weight = ctx.call, ctx.call.weight
        needs_x, _, trains_weight, trains_bias, *_ = ctx.needs_input_grad
        x_TK = next(iter(kept(ctx)), None)
        dy_TN = dy_TN.to(ctx.dtype).contiguous()
        fast = is_fast(dy_TN, ctx.call.impl)
        dx_TK = input_grad(dy_TN, weight, fast=fast) if needs_x else None
        low_rank: list[Tensor | None] = []
        if call.adapters is not None:
            low_rank = adapter_grads(x_TK, dy_TN, dx_TK, call.placed, call.adapters, call.terms, call.impl, fast=fast)
        dleaf = dbias_N = None
        if trains_weight:
            assert x_TK is not None
            dleaf = leaf_grad(x_TK, dy_TN, weight, fast=fast)
        if trains_bias:
            dbias_N = dy_TN.sum(0, dtype=torch.float32)
        return dx_TK, None, dleaf, dbias_N, *low_rank


def _forward(x_TK: Tensor, bias_N: Tensor | None, call: _Call) -> Tensor:
    y_TN = _multiply(x_TK, call.weight, bias_N, call.impl, call.out_dtype)
    if call.adapters is not None:
        add_adapters(y_TN, x_TK, call.placed, call.adapters, call.impl, invariant=call.weight.invariant)
    return y_TN


def _multiply(x_TK: Tensor, weight: Weight, bias_N: Tensor | None, impl: Impl, out_dtype: torch.dtype | None) -> Tensor:
    if isinstance(weight, Fp8Weight):
        y_TN = fp8_linear(x_TK, weight, bias_N, impl)
        return y_TN if out_dtype is None else y_TN.to(out_dtype)
    fast = impl == "native" or (impl == "auto" and native.usable(x_TK))
    if isinstance(weight, DenseWeight):
        choice = _choice(x_TK, weight, impl)
        if choice is not None:
            return _triton_product(x_TK, weight, bias_N, choice, out_dtype=out_dtype)
        if not fast or not (HAS_ONEDNN or weight.invariant):
            return _plain_product(x_TK, weight.dense(), bias_N, out_dtype or x_TK.dtype)
        weight.pack()
        return multiply_dense(x_TK.contiguous(), weight, bias_N)
    if fast:
        y_TN = multiply_int8(x_TK.contiguous(), weight)
        return y_TN if bias_N is None else y_TN.add_(bias_N)
    y_TN = F.linear(x_TK, weight.weight_NK.to(x_TK.dtype)) * weight.scale_N.to(x_TK.dtype)
    y_TN = y_TN if bias_N is None else y_TN + bias_N
    return y_TN if out_dtype is None else y_TN.to(out_dtype)


def _plain_product(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    if out_dtype is x_TK.dtype:
        return F.linear(x_TK, weight_NK, bias_N)
    if x_TK.is_cpu:  # widened in parts: the weight may be a large head
        y_TN = x_TK.new_empty(x_TK.shape[0], weight_NK.shape[0], dtype=out_dtype)
        rows = max(1, _WIDENED_BYTES // (out_dtype.itemsize * weight_NK.shape[1]))
        for start in range(0, weight_NK.shape[0], rows):
            part_NK = weight_NK[start : start + rows].to(out_dtype)
            torch.mm(x_TK.to(out_dtype), part_NK.T, out=y_TN[:, start : start + rows])
    else:
        y_TN = torch.mm(x_TK, weight_NK.T, out_dtype=out_dtype)
    return y_TN if bias_N is None else y_TN.add_(bias_N)


def _choice(x_TK: Tensor, weight: DenseWeight, impl: Impl) -> Choice | None:
    """The Triton kernel to take, if any: for results independent of the batch, or where cuBLAS is slower."""
    if impl != "triton" and (impl != "auto" or not gpu.usable(x_TK)):
        return None
    sizes = (*x_TK.shape, weight.weight_NK.shape[0])
    if weight.invariant:
        return matmul_choices.invariant(*sizes, x_TK.dtype.itemsize)
    if impl == "triton":
        return matmul_choices.fastest(*sizes) or matmul_choices.invariant(*sizes, x_TK.dtype.itemsize)
    if x_TK.dtype is torch.float32 or not gpu.is_hopper(x_TK.device):
        return None
    return matmul_choices.fastest(*sizes)


def _triton_product(
    x_TK: Tensor,
    weight: DenseWeight,
    bias_N: Tensor | None,
    choice: Choice,
    *,
    out_dtype: torch.dtype | None = None,
    gate: Activation | None = None,
) -> Tensor:
    # imported where it runs: a CPU install has no Triton
    from harmonia.kernels.matmul_triton import product

    return product(x_TK, weight.dense(), bias_N, choice, out_dtype=out_dtype, gate=gate)
