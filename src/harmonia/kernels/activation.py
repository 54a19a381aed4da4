"""Gated activations of feed-forward layers. Shapes: T tokens, F features of one half."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from harmonia.kernels import native
from harmonia.kernels.native import Impl, kernel
from harmonia.kernels.native_code import exp, float32, float32s, int64s, part, share

Activation = Literal["silu", "gelu_tanh"]

_FEATURES_PER_THREAD = 8192


def gated_activation(gate_up_TF2: Tensor, activation: Activation, impl: Impl = "auto") -> Tensor:
    """activation(gate) * up, where the input holds gate and up side by side: out_TF."""
    if impl == "eager" or (impl == "auto" and not native.usable(gate_up_TF2)):
        return _gated_activation_eager(gate_up_TF2, activation)
    gate_up_TF2 = gate_up_TF2.contiguous()
    num_features = gate_up_TF2.shape[-1] // 2
    out_TF = gate_up_TF2.new_empty(*gate_up_TF2.shape[:-1], num_features)
    threads = native.threads_for(out_TF.numel(), _FEATURES_PER_THREAD)
    gated = _gated_silu if activation == "silu" else _gated_gelu
    rows = out_TF.numel() // num_features
    gated.run(threads, gate_up_TF2.data_ptr(), out_TF.data_ptr(), rows, num_features)
    return out_TF


def _gated_activation_eager(gate_up_TF2: Tensor, activation: Activation) -> Tensor:
    gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate_TF) * up_TF
    return F.gelu(gate_TF, approximate="tanh") * up_TF


@kernel("qqqq")
def _gated_silu(arguments: int, thread: int, num_threads: int) -> None:
    gate_up, out, rows, size = int64s(arguments, 4)
    first, stop = share(rows * size, thread, num_threads)
    while first < stop:
        gate_F, up_F, out_F = _rest_of_row(gate_up, out, first, stop, size)
        for f in range(len(out_F)):
            x = gate_F[f]
            out_F[f] = x * up_F[f] / (float32(1) + exp(-x))
        first += len(out_F)


@kernel("qqqq")
def _gated_gelu(arguments: int, thread: int, num_threads: int) -> None:
    gate_up, out, rows, size = int64s(arguments, 4)
    first, stop = share(rows * size, thread, num_threads)
    while first < stop:
        gate_F, up_F, out_F = _rest_of_row(gate_up, out, first, stop, size)
        for f in range(len(out_F)):
            x = gate_F[f]
            # 0.5 x (1 + tanh(z)) = x / (1 + exp(-2 z)), with z = sqrt(2 / pi) (x + 0.044715 x^3)
            twice_z = float32(1.59576912) * x * (float32(1) + float32(0.044715) * x * x)
            out_F[f] = x * up_F[f] / (float32(1) + exp(-twice_z))
        first += len(out_F)


@part
def _rest_of_row(gate_up: int, out: int, first: int, stop: int, size: int) -> tuple[Any, Any, Any]:
    """Features from the flat index `first` to the end of its row or to `stop`: threads share even a single token."""
    row, begin = first // size, first % size
    count = min(size - begin, stop - first)
    gate = gate_up + 4 * (2 * row * size + begin)
    return float32s(gate, count), float32s(gate + 4 * size, count), float32s(out + 4 * first, count)
