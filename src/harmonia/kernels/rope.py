"""Rotary position embedding of queries and keys, halves rotated against each other.

Shapes: T tokens, H heads (queries and keys alike), D head size, C positions of the table.
Su et al., RoFormer, 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harmonia.kernels import native
from harmonia.kernels.native import Impl, kernel
from harmonia.kernels.native_code import float32s, int64s, share

_FEATURES_PER_THREAD = 32_768


def apply_rope(x_THD: Tensor, cos_sin_CD: Tensor, positions_T: Tensor, impl: Impl = "auto") -> Tensor:
    """Rotate each head by its token's position; the table holds cos in its first half and sin in its second."""
    if impl == "eager" or (impl == "auto" and not native.usable(x_THD, cos_sin_CD)):
        return _apply_rope_eager(x_THD, cos_sin_CD, positions_T)
    tokens, heads, size = x_THD.shape
    if x_THD.stride(2) != 1 or x_THD.stride(1) != size:  # a slice of the fused projection is fine
        x_THD = x_THD.contiguous()
    out_THD = torch.empty(x_THD.shape)
    addresses = (x_THD.data_ptr(), cos_sin_CD.data_ptr(), positions_T.data_ptr(), out_THD.data_ptr())
    threads = native.threads_for(out_THD.numel(), _FEATURES_PER_THREAD)
    _rotate.run(threads, *addresses, x_THD.stride(0), tokens, heads, size)
    return out_THD


def _apply_rope_eager(x_THD: Tensor, cos_sin_CD: Tensor, positions_T: Tensor) -> Tensor:
    cos_TD, sin_TD = cos_sin_CD[positions_T].chunk(2, dim=-1)
    cos_T1D, sin_T1D = cos_TD[:, None], sin_TD[:, None]
    left, right = x_THD.float().chunk(2, dim=-1)
    rotated_THD = torch.cat((left * cos_T1D - right * sin_T1D, right * cos_T1D + left * sin_T1D), dim=-1)
    return rotated_THD.to(x_THD.dtype)


@kernel("qqqqqqqq")
def _rotate(arguments: int, thread: int, num_threads: int) -> None:
    x, table, positions, out, stride, tokens, heads, size = int64s(arguments, 8)
    half = size // 2
    positions_T = int64s(positions, tokens)
    first, stop = share(tokens, thread, num_threads)
    for token in range(first, stop):
        row = table + 4 * positions_T[token] * size
        cos_D, sin_D = float32s(row, half), float32s(row + 4 * half, half)
        for head in range(heads):
            source = x + 4 * (token * stride + head * size)
            target = out + 4 * (token * heads + head) * size
            left_D, right_D = float32s(source, half), float32s(source + 4 * half, half)
            new_left_D, new_right_D = float32s(target, half), float32s(target + 4 * half, half)
            for d in range(half):
                left, right, cos, sin = left_D[d], right_D[d], cos_D[d], sin_D[d]
                new_left_D[d] = left * cos - right * sin
                new_right_D[d] = right * cos + left * sin
