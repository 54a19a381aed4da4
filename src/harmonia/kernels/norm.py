"""Root-mean-square norm, alone and with the residual addition before it. Shapes: T tokens, E features, P threads.

Backward, with s = 1 / rms(x) and g the gradient of the output: dx = s (g w - x s^2 mean(g w x)), and dw is the sum of
g x s over all tokens. Only x and the weight are kept for it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from harmonia.kernels import gpu, native
from harmonia.kernels.native import Impl, kernel
from harmonia.kernels.native_code import float32, float32s, float64s, int64s, part, share

_FEATURES_PER_THREAD = 32_768


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float, impl: Impl = "auto") -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in fp32. Any number of leading dimensions."""
    if torch.is_grad_enabled() and (x_TE.requires_grad or weight_E.requires_grad):
        return _RmsNorm.apply(x_TE, weight_E, eps, impl)  # type: ignore[no-untyped-call]
    return _forward(x_TE, weight_E, eps, impl)


def add_rms_norm(
    x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual)."""
    if torch.is_grad_enabled() and (x_TE.requires_grad or residual_TE.requires_grad or weight_E.requires_grad):
        return _AddRmsNorm.apply(x_TE, residual_TE, weight_E, eps, impl)  # type: ignore[no-untyped-call]
    return _add_forward(x_TE, residual_TE, weight_E, eps, impl)


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, weight_E: Tensor, eps: float, impl: Impl) -> Tensor:
        x_TE = x_TE.contiguous()  # a slice would keep the whole projection that it is part of
        ctx.save_for_backward(x_TE, weight_E)
        ctx.eps, ctx.impl, ctx.again = eps, impl, _again
        return _forward(x_TE, weight_E, eps, impl)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_TE: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        d_x_TE, d_weight_E = _backward(ctx, d_out_TE, None, ctx.needs_input_grad[1])
        return d_x_TE, d_weight_E, None, None


class _AddRmsNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float, impl: Impl
    ) -> tuple[Tensor, Tensor]:
        out_TE, sum_TE = _add_forward(x_TE, residual_TE, weight_E, eps, impl)
        ctx.save_for_backward(sum_TE, weight_E)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.impl, ctx.again = eps, impl, _again
        return out_TE, sum_TE

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_out_TE: Tensor | None, d_sum_TE: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        if d_out_TE is None:
            return d_sum_TE, d_sum_TE, None, None, None
        d_x_TE, d_weight_E = _backward(ctx, d_out_TE, d_sum_TE, ctx.needs_input_grad[2])
        return d_x_TE, d_x_TE, d_weight_E, None, None


def _again(ctx: Any) -> tuple[Tensor, Tensor]:
    """Both outputs of the norm of a sum, of which the other one has the first; see again.py."""
    x_TE, weight_E = ctx.saved_tensors
    return _forward(x_TE, weight_E, ctx.eps, ctx.impl), x_TE


def _forward(x_TE: Tensor, weight_E: Tensor, eps: float, impl: Impl) -> Tensor:
    if impl == "triton" or (impl == "auto" and gpu.usable(x_TE, weight_E)):
        return _triton(x_TE, None, weight_E, eps)[0]
    if impl == "eager" or (impl == "auto" and not native.usable(x_TE, weight_E)):
        return _rms_norm_eager(x_TE, weight_E, eps)
    x_TE = x_TE.contiguous()
    out_TE = torch.empty_like(x_TE)
    _run(x_TE, 0, weight_E, 0, out_TE, eps)
    return out_TE


def _add_forward(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float, impl: Impl) -> tuple[Tensor, Tensor]:
    if impl == "triton" or (impl == "auto" and gpu.usable(x_TE, residual_TE, weight_E)):
        return _triton(x_TE, residual_TE, weight_E, eps)
    if impl == "eager" or (impl == "auto" and not native.usable(x_TE, residual_TE, weight_E)):
        sum_TE = x_TE + residual_TE
        return _rms_norm_eager(sum_TE, weight_E, eps), sum_TE
    x_TE, residual_TE = x_TE.contiguous(), residual_TE.contiguous()
    out_TE, sum_TE = torch.empty_like(x_TE), torch.empty_like(x_TE)
    _run(x_TE, residual_TE.data_ptr(), weight_E, sum_TE.data_ptr(), out_TE, eps)
    return out_TE, sum_TE


def _backward(ctx: Any, d_out_TE: Tensor, d_sum_TE: Tensor | None, train_weight: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of what was normalised, `d_sum_TE` added, and of the weight in fp32."""
    x_TE, weight_E = ctx.saved_tensors
    if ctx.impl == "triton" or (ctx.impl == "auto" and gpu.usable(x_TE, weight_E, d_out_TE)):
        from harmonia.kernels.norm_triton import rms_norm_backward_triton

        return rms_norm_backward_triton(x_TE, weight_E, d_out_TE, d_sum_TE, ctx.eps, train_weight)
    fits = native.usable(x_TE, weight_E, d_out_TE) and (d_sum_TE is None or native.usable(d_sum_TE))
    if ctx.impl == "eager" or (ctx.impl == "auto" and not fits):
        return _backward_eager(x_TE, weight_E, d_out_TE, d_sum_TE, ctx.eps, train_weight)
    return _backward_native(x_TE, weight_E, d_out_TE, d_sum_TE, ctx.eps, train_weight)


def _triton(x_TE: Tensor, residual_TE: Tensor | None, weight_E: Tensor, eps: float) -> tuple[Tensor, Any]:
    from harmonia.kernels.norm_triton import rms_norm_triton  # imported where it runs: a CPU install has no Triton

    return rms_norm_triton(x_TE, residual_TE, weight_E, eps)


def _rms_norm_eager(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    x32_TE = x_TE.float()
    scale_T1 = torch.rsqrt(x32_TE.square().mean(-1, keepdim=True) + eps)
    return (x32_TE * scale_T1).to(x_TE.dtype) * weight_E


def _backward_eager(
    x_TE: Tensor, weight_E: Tensor, d_out_TE: Tensor, d_sum_TE: Tensor | None, eps: float, train_weight: bool
) -> tuple[Tensor, Tensor | None]:
    x32_TE, d_out32_TE = x_TE.float(), d_out_TE.float()
    scale_T1 = torch.rsqrt(x32_TE.square().mean(-1, keepdim=True) + eps)
    unit_TE = x32_TE * scale_T1
    d_unit_TE = d_out32_TE * weight_E.float()
    d_x_TE = scale_T1 * (d_unit_TE - unit_TE * (d_unit_TE * unit_TE).mean(-1, keepdim=True))
    if d_sum_TE is not None:
        d_x_TE = d_x_TE + d_sum_TE
    d_weight_E = (d_out32_TE * unit_TE).flatten(0, -2).sum(0) if train_weight else None
    return d_x_TE.to(x_TE.dtype), d_weight_E


def _run(x_TE: Tensor, residual: int, weight_E: Tensor, total: int, out_TE: Tensor, eps: float) -> None:
    num_features = x_TE.shape[-1]
    rows = x_TE.numel() // num_features
    threads = native.threads_for(x_TE.numel(), _FEATURES_PER_THREAD)
    addresses = (x_TE.data_ptr(), residual, weight_E.data_ptr(), total, out_TE.data_ptr())
    _rms_norm_rows.run(threads, *addresses, rows, num_features, eps)


def _backward_native(
    x_TE: Tensor, weight_E: Tensor, d_out_TE: Tensor, d_sum_TE: Tensor | None, eps: float, train_weight: bool
) -> tuple[Tensor, Tensor | None]:
    d_out_TE, d_x_TE = d_out_TE.contiguous(), torch.empty_like(x_TE)
    d_sum_TE = None if d_sum_TE is None else d_sum_TE.contiguous()
    num_features = x_TE.shape[-1]
    rows = x_TE.numel() // num_features
    threads = native.threads_for(x_TE.numel(), _FEATURES_PER_THREAD)
    d_weight_PE = torch.zeros(threads, num_features) if train_weight else None
    gradients = [0 if tensor is None else tensor.data_ptr() for tensor in (d_out_TE, d_sum_TE, d_x_TE, d_weight_PE)]
    _backward_rows.run(threads, x_TE.data_ptr(), weight_E.data_ptr(), *gradients, rows, num_features, eps)
    return d_x_TE, None if d_weight_PE is None else d_weight_PE.sum(0)


@kernel("qqqqqqqd")
def _rms_norm_rows(arguments: int, thread: int, num_threads: int) -> None:
    x, residual, weight, total, out, rows, size = int64s(arguments, 7)
    eps = float64s(arguments, 8)[7]
    weight_E = float32s(weight, size)
    first, stop = share(rows, thread, num_threads)
    for row in range(first, stop):
        offset = 4 * row * size
        row_E = float32s(x + offset, size)
        if residual != 0:
            sum_E = float32s(total + offset, size)
            _add(row_E, float32s(residual + offset, size), sum_E)
            row_E = sum_E
        scale = _inverse_rms(row_E, eps)
        out_E = float32s(out + offset, size)
        for e in range(size):
            out_E[e] = row_E[e] * scale * weight_E[e]


@kernel("qqqqqqqqd")
def _backward_rows(arguments: int, thread: int, num_threads: int) -> None:
    x, weight, d_out, d_sum, d_x, d_weight, rows, size = int64s(arguments, 8)
    eps = float64s(arguments, 9)[8]
    weight_E = float32s(weight, size)
    first, stop = share(rows, thread, num_threads)
    for row in range(first, stop):
        offset = 4 * row * size
        x_E, d_out_E, d_x_E = float32s(x + offset, size), float32s(d_out + offset, size), float32s(d_x + offset, size)
        scale = _inverse_rms(x_E, eps)
        product = float32(0)
        for e in range(size):
            product += d_out_E[e] * weight_E[e] * x_E[e]
        slope = product * scale * scale / float32(size)
        for e in range(size):
            d_x_E[e] = scale * (d_out_E[e] * weight_E[e] - x_E[e] * slope)
        if d_sum != 0:
            _add(d_x_E, float32s(d_sum + offset, size), d_x_E)
        if d_weight != 0:
            d_weight_E = float32s(d_weight + 4 * thread * size, size)
            for e in range(size):
                d_weight_E[e] += d_out_E[e] * x_E[e] * scale


@part
def _inverse_rms(x_E: Any, eps: float) -> float:
    squares = float32(0)
    for e in range(len(x_E)):
        squares += x_E[e] * x_E[e]
    return float32(1.0 / math.sqrt(squares / len(x_E) + eps))


@part
def _add(a_E: Tensor, b_E: Tensor, out_E: Tensor) -> None:
    for e in range(len(out_E)):
        out_E[e] = a_E[e] + b_E[e]
