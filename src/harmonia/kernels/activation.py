"""Gated activations of feed-forward layers. Shapes: T tokens, F features of one half.

Backward keeps the input only and computes the gate anew.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from harmonia.kernels import gpu, native
from harmonia.kernels.native import Impl, kernel
from harmonia.kernels.native_code import exp, float32, float32s, int64s, part, share

Activation = Literal["silu", "gelu_tanh"]

_FEATURES_PER_THREAD = 8192
_UNIT = 256


def gated_activation(gate_up_TF2: Tensor, activation: Activation, impl: Impl = "auto") -> Tensor:
    """activation(gate) * up, where the input holds gate and up side by side: out_TF."""
    if torch.is_grad_enabled() and gate_up_TF2.requires_grad:
        return _GatedActivation.apply(gate_up_TF2, activation, impl)  # type: ignore[no-untyped-call]
    return _forward(gate_up_TF2, activation, impl)


class _GatedActivation(Function):
    @staticmethod
    def forward(ctx: Any, gate_up_TF2: Tensor, activation: Activation, impl: Impl) -> Tensor:
        ctx.save_for_backward(gate_up_TF2)
        ctx.activation, ctx.impl, ctx.again = activation, impl, _again
        return _forward(gate_up_TF2, activation, impl)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_TF: Tensor) -> tuple[Tensor, None, None]:
        (gate_up_TF2,) = ctx.saved_tensors
        if ctx.impl == "triton" or (ctx.impl == "auto" and gpu.usable(gate_up_TF2, d_out_TF)):
            from harmonia.kernels.activation_triton import gated_activation_backward_triton

            return gated_activation_backward_triton(gate_up_TF2, d_out_TF, ctx.activation), None, None
        fits = native.usable(gate_up_TF2, d_out_TF)
        if ctx.impl == "eager" or (ctx.impl == "auto" and not fits):
            return _backward_eager(gate_up_TF2, d_out_TF, ctx.activation), None, None
        return _backward_native(gate_up_TF2.contiguous(), d_out_TF.contiguous(), ctx.activation), None, None


def _again(ctx: Any) -> tuple[Tensor]:
    """The output; see again.py."""
    return (_forward(ctx.saved_tensors[0], ctx.activation, ctx.impl),)


def _forward(gate_up_TF2: Tensor, activation: Activation, impl: Impl) -> Tensor:
    if impl == "triton" or (impl == "auto" and gpu.usable(gate_up_TF2)):
        from harmonia.kernels.activation_triton import gated_activation_triton  # a CPU install has no Triton

        return gated_activation_triton(gate_up_TF2, activation)
    if impl == "eager" or (impl == "auto" and not native.usable(gate_up_TF2)):
        return _forward_eager(gate_up_TF2, activation)
    gate_up_TF2 = gate_up_TF2.contiguous()
    num_features = gate_up_TF2.shape[-1] // 2
    out_TF = gate_up_TF2.new_empty(*gate_up_TF2.shape[:-1], num_features)
    threads = native.threads_for(out_TF.numel(), _FEATURES_PER_THREAD)
    gated = _gated_silu if activation == "silu" else _gated_gelu
    rows = out_TF.numel() // num_features
    gated.run(threads, gate_up_TF2.data_ptr(), out_TF.data_ptr(), rows, num_features)
    return out_TF


def _forward_eager(gate_up_TF2: Tensor, activation: Activation) -> Tensor:
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate_TF) * up_TF
    return F.gelu(gate_TF, approximate="tanh") * up_TF


def _backward_eager(gate_up_TF2: Tensor, d_out_TF: Tensor, activation: Activation) -> Tensor:
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    if activation == "silu":
        d_gate_TF = torch.ops.aten.silu_backward(d_out_TF * up_TF, gate_TF)
        return torch.cat((d_gate_TF, d_out_TF * F.silu(gate_TF)), dim=-1)
    d_gate_TF = torch.ops.aten.gelu_backward(d_out_TF * up_TF, gate_TF, approximate="tanh")
    return torch.cat((d_gate_TF, d_out_TF * F.gelu(gate_TF, approximate="tanh")), dim=-1)


def _backward_native(gate_up_TF2: Tensor, d_out_TF: Tensor, activation: Activation) -> Tensor:
    d_gate_up_TF2 = torch.empty_like(gate_up_TF2)
    num_features = d_out_TF.shape[-1]
    threads = native.threads_for(d_out_TF.numel(), _FEATURES_PER_THREAD)
    backward = _silu_backward if activation == "silu" else _gelu_backward
    addresses = (gate_up_TF2.data_ptr(), d_out_TF.data_ptr(), d_gate_up_TF2.data_ptr())
    backward.run(threads, *addresses, d_out_TF.numel() // num_features, num_features)
    return d_gate_up_TF2


@kernel("qqqq")
def _gated_silu(arguments: int, thread: int, num_threads: int) -> None:
    gate_up, out, rows, size = int64s(arguments, 4)
    first, stop = _share(rows, size, thread, num_threads)
    while first < stop:
        gate_F, up_F, out_F = _rest_of_row(gate_up, out, first, stop, size)
        for f in range(len(out_F)):
            x = gate_F[f]
            out_F[f] = x * up_F[f] / (float32(1) + exp(-x))
        first += len(out_F)


@kernel("qqqq")
def _gated_gelu(arguments: int, thread: int, num_threads: int) -> None:
    gate_up, out, rows, size = int64s(arguments, 4)
    first, stop = _share(rows, size, thread, num_threads)
    while first < stop:
        gate_F, up_F, out_F = _rest_of_row(gate_up, out, first, stop, size)
        for f in range(len(out_F)):
            x = gate_F[f]
            # 0.5 x (1 + tanh(z)) = x / (1 + exp(-2 z)), with z = sqrt(2 / pi) (x + 0.044715 x^3)
            twice_z = float32(1.59576912) * x * (float32(1) + float32(0.044715) * x * x)
            out_F[f] = x * up_F[f] / (float32(1) + exp(-twice_z))
        first += len(out_F)


@kernel("qqqqq")
def _silu_backward(arguments: int, thread: int, num_threads: int) -> None:
    gate_up, d_out, d_gate_up, rows, size = int64s(arguments, 5)
    first, stop = _share(rows, size, thread, num_threads)
    while first < stop:
        gate_F, up_F, d_out_F = _rest_of_row(gate_up, d_out, first, stop, size)
        d_gate_F, d_up_F, _ = _rest_of_row(d_gate_up, d_out, first, stop, size)
        for f in range(len(d_out_F)):
            x, d_y = gate_F[f], d_out_F[f]
            sigmoid = float32(1) / (float32(1) + exp(-x))
            d_gate_F[f] = d_y * up_F[f] * sigmoid * (float32(1) + x * (float32(1) - sigmoid))
            d_up_F[f] = d_y * x * sigmoid
        first += len(d_out_F)


@kernel("qqqqq")
def _gelu_backward(arguments: int, thread: int, num_threads: int) -> None:
    gate_up, d_out, d_gate_up, rows, size = int64s(arguments, 5)
    first, stop = _share(rows, size, thread, num_threads)
    while first < stop:
        gate_F, up_F, d_out_F = _rest_of_row(gate_up, d_out, first, stop, size)
        d_gate_F, d_up_F, _ = _rest_of_row(d_gate_up, d_out, first, stop, size)
        for f in range(len(d_out_F)):
            x, d_y = gate_F[f], d_out_F[f]
            # Beyond 10 the slope is 0 or 1 to the last bit, and the square of a large x would overflow.
            near = x if x > float32(-10) else float32(-10)
            near = near if near < float32(10) else float32(10)
            square = float32(0.044715) * near * near
            sigmoid = float32(1) / (float32(1) + exp(float32(-1.59576912) * near * (float32(1) + square)))
            slope = float32(1.59576912) * (float32(1) + float32(3) * square)
            d_gate_F[f] = d_y * up_F[f] * sigmoid * (float32(1) + near * (float32(1) - sigmoid) * slope)
            d_up_F[f] = d_y * x * sigmoid
        first += len(d_out_F)


@part
def _share(rows: int, size: int, thread: int, num_threads: int) -> tuple[int, int]:
    """Flat indices of a thread's first feature and of the one after its last.

    Rows are cut at multiples of 256 only: vector instructions divide a little differently from those for the few
    numbers that are left over, and which these are may not depend on the batch.
    """
    units = (size + _UNIT - 1) // _UNIT
    first, stop = share(rows * units, thread, num_threads)
    return first // units * size + first % units * _UNIT, stop // units * size + stop % units * _UNIT


@part
def _rest_of_row(gate_up: int, out: int, first: int, stop: int, size: int) -> tuple[Any, Any, Any]:
    """Features from the flat index `first` to the end of its row or to `stop`: threads share even a single token."""
    row, begin = first // size, first % size
    count = min(size - begin, stop - first)
    gate = gate_up + 4 * (2 * row * size + begin)
    return float32s(gate, count), float32s(gate + 4 * size, count), float32s(out + 4 * first, count)
