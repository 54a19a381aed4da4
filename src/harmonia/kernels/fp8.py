"""Products with weights in e4m3 of activations that are rounded to e4m3 as well, token by token.

Every device rounds activations in the same way, for any number of tokens, in serving and in training: what trains is
what serves. Gradients pass through the rounding (straight through) and meet the weight's own bytes, in the type of the
activations.

Shapes: T tokens, K input features, N output features, B scales of one token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from harmonia.kernels.activation import Activation, gated_activation
from harmonia.kernels.fp8_choices import SIDE, choose, choose_invariant
from harmonia.kernels.fp8_weight import TOKEN_STEPS, Fp8Weight, Tile, dequantise, is_native, quantise
from harmonia.kernels.matmul_native import multiply_dense, onednn_linear
from harmonia.kernels.native import Impl
from harmonia.kernels.weight import HAS_ONEDNN, DenseWeight

PART_BYTES = 64 << 20
"""Of a weight that is written out at once for a gradient on a GPU."""
_CPU_PART_BYTES = 8 << 20  # stays in the cache between being written and being read
_VENDOR_MULTIPLE = 16


def fp8_linear(
    x_TK: Tensor,
    weight: Fp8Weight,
    bias_N: Tensor | None = None,
    impl: Impl = "auto",
    gate: Activation | None = None,
) -> Tensor:
    """x W^T + b: y_TN; with `gate` activation(gate) * up of the two halves of its features."""
    if impl == "triton" or (impl == "auto" and is_native(x_TK)):
        return _linear_gpu(x_TK, weight, bias_N, gate, vendor=impl == "auto")
    # The bytes of x are exact in fp32, and so are products; only sums round.
    x_TK, dtype = dequantise(*quantise(x_TK, weight.token_tile, TOKEN_STEPS), weight.token_tile), x_TK.dtype
    y_TN = x_TK.new_empty(x_TK.shape[0], weight.weight_NK.shape[0], dtype=dtype)
    for start, stop in _parts(weight.weight_NK.shape[0], weight.weight_NK.shape[1], SIDE, x_TK.is_cuda):
        part_TM = _multiply(x_TK, weight.row_range(start, stop), impl, invariant=weight.invariant)
        y_TN[:, start:stop] = part_TM if bias_N is None else part_TM + bias_N[start:stop].float()
    return y_TN if gate is None else gated_activation(y_TN, gate, impl)


def fp8_input_grad(dy_TN: Tensor, weight: Fp8Weight, impl: Impl = "auto") -> Tensor:
    """dy W: dx_TK, in the type of dy; some columns of the weight at a time, each a whole sum."""
    num_out, num_in = weight.weight_NK.shape
    dx_TK = dy_TN.new_empty(dy_TN.shape[0], num_in)
    if dx_TK.numel() == 0:
        return dx_TK
    native = impl == "triton" or (impl == "auto" and is_native(dy_TN))
    for start, stop in _parts(num_in, num_out, SIDE, dy_TN.is_cuda):
        if native:
            # imported where it runs: a CPU install has no Triton
            from harmonia.kernels.fp8_triton import dequantised_columns

            weight_NM = dequantised_columns(weight, start, stop, dy_TN.dtype)
        else:
            weight_NM = weight.columns(start, stop, dy_TN.dtype)
        if dy_TN.is_cuda:
            torch.mm(dy_TN, weight_NM, out=dx_TK[:, start:stop])
        else:
            dx_TK[:, start:stop] = _multiply(dy_TN, weight_NM.T, impl, invariant=False)
    return dx_TK


def quantise_tokens(x_TK: Tensor, columns: int, impl: Impl = "auto") -> tuple[Tensor, Tensor]:
    """(e4m3 values_TK, fp32 scale_TB): so many neighbouring features of a token share a scale."""
    if impl == "triton" or (impl == "auto" and is_native(x_TK)):
        from harmonia.kernels import fp8_round_triton

        return fp8_round_triton.quantise_tokens(x_TK, columns, TOKEN_STEPS)
    return quantise(x_TK, Tile(1, columns), TOKEN_STEPS)


def _linear_gpu(
    x_TK: Tensor, weight: Fp8Weight, bias_N: Tensor | None, gate: Activation | None, *, vendor: bool
) -> Tensor:
    from harmonia.kernels.fp8_triton import product, row_product

    num_tokens, num_in = x_TK.shape
    num_out = weight.weight_NK.shape[0]
    if weight.invariant:
        choice = choose_invariant(num_tokens, num_out, num_in)
    else:
        squares = not weight.is_per_channel
        vendor = vendor and x_TK.dtype is torch.bfloat16 and not (num_out | num_in) % _VENDOR_MULTIPLE
        found = choose(num_tokens, num_out, num_in, squares=squares or not vendor)
        if found is None:
            y_TN = _linear_vendor(x_TK, weight, bias_N)
            return y_TN if gate is None else gated_activation(y_TN, gate)
        choice = found
    values_TK, scale_TB = quantise_tokens(x_TK, weight.tile.columns)
    multiply = row_product if choice.block_t == 1 else product
    return multiply(values_TK, scale_TB, weight, bias_N, choice, dtype=x_TK.dtype, gate=gate or "")


def _linear_vendor(x_TK: Tensor, weight: Fp8Weight, bias_N: Tensor | None) -> Tensor:
    values_TK, scale_T1 = quantise_tokens(x_TK, weight.tile.columns)
    y_TN: Tensor = torch._scaled_mm(
        values_TK,
        weight.weight_NK.t(),
        scale_a=scale_T1,
        scale_b=weight.scale_GB.t(),
        out_dtype=x_TK.dtype,
        use_fast_accum=True,
    )
    return y_TN if bias_N is None else y_TN.add_(bias_N)


def _parts(size: int, other: int, multiple: int, is_cuda: bool) -> list[tuple[int, int]]:
    """Ranges of one side of a weight, whose fp32 or bf16 values are alive at a time; they begin with a tile."""
    num_bytes = PART_BYTES // 2 if is_cuda else _CPU_PART_BYTES // 4
    step = max(1, num_bytes // max(1, other) // multiple) * multiple
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def _multiply(x_TK: Tensor, weight_NK: Tensor, impl: Impl, *, invariant: bool) -> Tensor:
    """x W^T of fp32 on a CPU in oneDNN, which is faster, or in kernels that sum in one order."""
    if impl == "eager" or not (x_TK.is_cpu and x_TK.dtype is torch.float32 and x_TK.numel()):
        return F.linear(x_TK, weight_NK)
    if invariant:
        return multiply_dense(x_TK, DenseWeight(weight_NK, is_final=True, invariant=True), None)
    return onednn_linear(x_TK, weight_NK) if HAS_ONEDNN else F.linear(x_TK, weight_NK)
