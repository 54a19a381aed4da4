"""Products of the backward pass: gradients of a linear layer's inputs and of its weight.

With `fast` they run in oneDNN, which needs fp32 on the CPU: twice the speed of `@` on AVX-512, from any strides.
Shapes: T tokens, K input features, N output features, M rows or columns of a part, X panels of P output features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from harmonia.kernels.fp8 import fp8_input_grad
from harmonia.kernels.fp8_weight import Fp8Weight
from harmonia.kernels.matmul_native import dequantised_parts, onednn_linear
from harmonia.kernels.native import Impl
from harmonia.kernels.weight import HAS_ONEDNN, PANEL, DenseWeight, Int8Weight, Weight

_PART_BYTES = 4 << 20  # of a weight unpacked at once: stays in the cache, faster than unpacking all of a large one
_EAGER_PART_BYTES = 64 << 20


def is_fast(x_TK: Tensor, impl: Impl) -> bool:
    """Whether products with this tensor run in oneDNN."""
    return impl != "eager" and HAS_ONEDNN and x_TK.is_cpu and x_TK.dtype is torch.float32


def linear(x_TK: Tensor, weight_NK: Tensor, *, fast: bool) -> Tensor:
    """x W^T."""
    return onednn_linear(x_TK, weight_NK) if fast else x_TK @ weight_NK.T


def outer_sum(u_TM: Tensor, v_TN: Tensor, *, fast: bool) -> Tensor:
    """u^T v, the sum over tokens of outer products, in fp32: sum_MN."""
    if fast and u_TM.shape[0]:  # oneDNN refuses empty sums, and takes a thousand times longer for some columns of v
        return onednn_linear(u_TM.T, v_TN.contiguous().T)
    if u_TM.dtype is torch.float32:
        return u_TM.T @ v_TN
    if u_TM.is_cpu:
        return u_TM.T.float() @ v_TN.float()
    return torch.mm(u_TM.T, v_TN, out_dtype=torch.float32)


def input_grad(dy_TN: Tensor, weight: Weight, *, fast: bool) -> Tensor:
    """dy W: dx_TK, in the type of dy."""
    if isinstance(weight, Fp8Weight):
        return fp8_input_grad(dy_TN, weight, "auto" if fast or dy_TN.is_cuda else "eager")
    if isinstance(weight, DenseWeight) and (weight.panels_XKP is None or not fast):
        return onednn_linear(dy_TN, weight.weight_NK.T) if fast else dy_TN @ weight.dense()
    if isinstance(weight, DenseWeight):
        parts = _unpacked_parts(weight)
    elif fast:
        parts = ((start, dense_MK.T) for start, dense_MK in dequantised_parts(weight, _PART_BYTES))
    else:
        dy_TN, parts = dy_TN * weight.scale_N.to(dy_TN.dtype), _unscaled_parts(weight, dy_TN.dtype)
    dx_TK = None
    for start, weight_KM in parts:
        part_TK = linear(dy_TN[:, start : start + weight_KM.shape[1]], weight_KM, fast=fast).float()
        dx_TK = part_TK if dx_TK is None else dx_TK.add_(part_TK)
    assert dx_TK is not None
    return dx_TK.to(dy_TN.dtype)


def weight_grad(x_TK: Tensor, dy_TN: Tensor, weight: DenseWeight, *, fast: bool) -> Tensor:
    """dy^T x in fp32, in the layout of the weight's leaf."""
    if weight.panels_XKP is None:
        return outer_sum(dy_TN, x_TK, fast=fast)
    # As (K, N), whose rows hold runs of a panel's width: adding it to the leaf's gradient then reads whole cache lines.
    return outer_sum(x_TK, dy_TN, fast=fast).unflatten(1, (-1, PANEL)).transpose(0, 1)


def leaf_grad(x_TK: Tensor, dy_TN: Tensor, weight: DenseWeight, *, fast: bool) -> Tensor | None:
    """`weight_grad`, or None where the product itself adds to the gradient of the leaf, which spares a pass over it."""
    if not dy_TN.is_cuda:
        return weight_grad(x_TK, dy_TN, weight, fast=fast)
    add_weight_grad(x_TK, dy_TN, weight, fast=fast)
    return None


def add_weight_grad(x_TK: Tensor, dy_TN: Tensor, weight: DenseWeight, *, fast: bool) -> None:
    """Add dy^T x to the gradient of the weight's leaf.

    Some rows at a time, so that there is no second gradient of a large head; on a GPU in place.
    """
    total = weight.leaf_grad()
    if dy_TN.is_cuda:
        if dy_TN.dtype is torch.float32:
            total.addmm_(dy_TN.T, x_TK)
        else:
            torch.addmm(total, dy_TN.T, x_TK, out_dtype=torch.float32, out=total)
        return
    num_out = dy_TN.shape[1]
    num_bytes = _PART_BYTES if fast else _EAGER_PART_BYTES
    rows_per_part = max(1, num_bytes // (4 * PANEL * x_TK.shape[1])) * PANEL
    for start in range(0, num_out, rows_per_part):
        part_TM = dy_TN[:, start : start + rows_per_part]
        rows = slice(start, start + rows_per_part)
        if weight.panels_XKP is not None:
            rows = slice(start // PANEL, (start + rows_per_part) // PANEL)
        total[rows] += weight_grad(x_TK, part_TM, weight, fast=fast)


def add_rows_grad(ids_T: Tensor, dx_TK: Tensor, weight: DenseWeight) -> None:
    """Add the gradient of `weight.rows(ids_T)` to the gradient of the weight's leaf."""
    total = weight.leaf_grad()
    if weight.panels_XKP is None:
        total.index_put_((ids_T,), dx_TK.float(), accumulate=True)
    else:
        total.transpose(1, 2).index_put_((ids_T // PANEL, ids_T % PANEL), dx_TK.float(), accumulate=True)


def _unpacked_parts(weight: DenseWeight) -> Iterator[tuple[int, Tensor]]:
    """(first column, columns of W^T in fp32) through all panels, in one and the same memory."""
    assert weight.panels_XKP is not None
    panels_XKP = weight.panels_XKP
    num_panels, num_in, _ = panels_XKP.shape
    per_part = min(num_panels, max(1, _PART_BYTES // (4 * PANEL * num_in)))
    scratch = torch.empty(num_in * per_part * PANEL)
    for start in range(0, num_panels, per_part):
        part_XKP = panels_XKP[start : start + per_part]
        part_KXP = scratch[: part_XKP.numel()].view(num_in, -1, PANEL)
        part_KXP.copy_(part_XKP.transpose(0, 1))
        yield start * PANEL, part_KXP.flatten(1)


def _unscaled_parts(weight: Int8Weight, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    num_out, num_in = weight.weight_NK.shape
    rows_per_part = max(PANEL, _EAGER_PART_BYTES // (dtype.itemsize * num_in))
    for start in range(0, num_out, rows_per_part):
        yield start, weight.weight_NK[start : start + rows_per_part].to(dtype).T
