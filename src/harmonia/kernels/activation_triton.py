"""Gated activations on a GPU. Shapes: T tokens, F features of one half; in kernels B features of a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_WARPS = 4


def gated_activation_triton(gate_up_TF2: Tensor, activation: str) -> Tensor:
    """activation(gate) * up."""
    gate_up_TF2, stride = _with_rows(gate_up_TF2)
    num_features = gate_up_TF2.shape[-1] // 2
    out_TF = gate_up_TF2.new_empty(*gate_up_TF2.shape[:-1], num_features)
    if out_TF.numel():
        blocks = triton.cdiv(num_features, _BLOCK)
        _gated[(blocks * (out_TF.numel() // num_features),)](
            *(gate_up_TF2, out_TF, stride, num_features, blocks, _BLOCK, activation == "silu"),
            num_warps=_WARPS,
        )
    return out_TF


def gated_activation_backward_triton(gate_up_TF2: Tensor, d_out_TF: Tensor, activation: str) -> Tensor:
    """Gradient of gate and up, side by side."""
    gate_up_TF2, stride = _with_rows(gate_up_TF2)
    d_out_TF, d_stride = _with_rows(d_out_TF)
    num_features = d_out_TF.shape[-1]
    d_gate_up_TF2 = torch.empty(gate_up_TF2.shape, dtype=gate_up_TF2.dtype, device=gate_up_TF2.device)
    if d_out_TF.numel():
        blocks = triton.cdiv(num_features, _BLOCK)
        _gated_backward[(blocks * (d_out_TF.numel() // num_features),)](
            *(gate_up_TF2, d_out_TF, d_gate_up_TF2, stride, d_stride, num_features, blocks),
            *(_BLOCK, activation == "silu"),
            num_warps=_WARPS,
        )
    return d_gate_up_TF2


def _with_rows(x_TF: Tensor) -> tuple[Tensor, int]:
    """The same with features side by side, and the distance between rows."""
    if x_TF.dim() != 2 or x_TF.stride(1) != 1:
        x_TF = x_TF.contiguous()
        return x_TF, x_TF.shape[-1]
    return x_TF, x_TF.stride(0)


@triton.jit
def _gated(gate_up, out, stride, size, blocks, B: tl.constexpr, SILU: tl.constexpr):
    row = (tl.program_id(0) // blocks).to(tl.int64)
    feature_B = (tl.program_id(0) % blocks) * B + tl.arange(0, B)
    mask_B = feature_B < size
    gate_B = tl.load(gate_up + row * stride + feature_B, mask=mask_B, other=0.0).to(tl.float32)
    up_B = tl.load(gate_up + row * stride + size + feature_B, mask=mask_B, other=0.0).to(tl.float32)
    sigmoid_B, _ = _sigmoid(gate_B, SILU)
    tl.store(out + row * size + feature_B, gate_B * sigmoid_B * up_B, mask=mask_B)


@triton.jit
def _gated_backward(
    gate_up, d_out, d_gate_up, stride, d_stride, size, blocks, B: tl.constexpr, SILU: tl.constexpr
):  # fmt: skip
    row = (tl.program_id(0) // blocks).to(tl.int64)
    feature_B = (tl.program_id(0) % blocks) * B + tl.arange(0, B)
    mask_B = feature_B < size
    gate_B = tl.load(gate_up + row * stride + feature_B, mask=mask_B, other=0.0).to(tl.float32)
    up_B = tl.load(gate_up + row * stride + size + feature_B, mask=mask_B, other=0.0).to(tl.float32)
    d_out_B = tl.load(d_out + row * d_stride + feature_B, mask=mask_B, other=0.0).to(tl.float32)
    sigmoid_B, slope_B = _sigmoid(gate_B, SILU)
    d_gate_B = d_out_B * up_B * (sigmoid_B + sigmoid_B * (1.0 - sigmoid_B) * slope_B)
    into = d_gate_up + row * (2 * size) + feature_B
    tl.store(into, d_gate_B, mask=mask_B)
    tl.store(into + size, d_out_B * gate_B * sigmoid_B, mask=mask_B)


@triton.jit
def _sigmoid(x_B, SILU: tl.constexpr):
    """(s, x times the slope of s's argument) where the activation is x s."""
    if SILU:
        argument_B = x_B
        slope_B = tl.minimum(tl.maximum(x_B, -100.0), 100.0)  # beyond, it counts for nothing, and 0 * inf is no number
    else:
        # 0.5 x (1 + tanh(z)) = x sigmoid(2 z), with z = sqrt(2 / pi) (x + 0.044715 x^3). Beyond 10 it is 0 or 1.
        near_B = tl.minimum(tl.maximum(x_B, -10.0), 10.0)
        square_B = 0.044715 * near_B * near_B
        argument_B = 1.5957691216057308 * near_B * (1.0 + square_B)
        slope_B = 1.5957691216057308 * near_B * (1.0 + 3.0 * square_B)
    return 1.0 / (1.0 + tl.exp(-argument_B)), slope_B
