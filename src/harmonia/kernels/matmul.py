"""Matrix products with a weight held in one of several forms.

Shapes: T tokens, K input features, N output features, M rows of a part.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harmonia.kernels import native
from harmonia.kernels.native import Impl, kernel
from harmonia.kernels.native_code import (
    add_product_1_row_64_bf16_columns_2_lines,
    add_product_1_row_64_columns_4_lines,
    add_product_4_rows_64_bf16_columns_1_line,
    add_product_4_rows_64_bf16_columns_2_lines,
    add_product_4_rows_64_columns_1_line,
    add_product_4_rows_64_columns_2_lines,
    add_product_4_rows_64_columns_4_lines,
    float32,
    float32s,
    int8s,
    int64s,
    part,
    prefetch,
    share,
)

_WEIGHTS_PER_THREAD = 32_768
# From here on writing the weights out in fp32 for oneDNN beats converting them inside the product.
_INT8_MAX_TOKENS_IN_PLACE = 96
_DEQUANTISED_BYTES = 8 << 20  # stays in the cache between being written and being read
_PANEL = 64
_BLOCK = 64
_PANELS_MAX_TOKENS = 96  # beyond, oneDNN's own blocking wins
_BF16_PANELS_MAX_TOKENS = 160  # and beyond this even when it must be given fp32 first
_WIDENED_BYTES = 32 << 20
_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_ROW_BLOCK = 16  # one cache line of results


class _Packed(NamedTuple):
    """An fp32 weight on the CPU, as panels of 64 output features: the order in which oneDNN keeps it on AVX-512."""

    panels_XKP: Tensor
    """bf16 if that loses nothing, as with most published weights: half the memory to read, the same products."""
    opaque: Tensor | None
    """The same memory as oneDNN takes it, if it is fp32."""


@dataclass(slots=True)
class DenseWeight:
    """A weight in the compute type."""

    weight_NK: Tensor
    """After `pack`, the panels of `packed` instead."""
    packed: _Packed | None = None
    is_final: bool = False
    """`pack` was called."""

    @staticmethod
    def empty(num_out: int, num_in: int, dtype: torch.dtype, device: torch.device) -> DenseWeight:
        """Storage to be filled row range by row range."""
        return DenseWeight(torch.empty(num_out, num_in, dtype=dtype, device=device))

    def fill(self, start: int, part_MK: Tensor) -> None:
        """Write rows `start` to `start + M`."""
        assert self.packed is None, "a weight is filled before it is used"
        self.weight_NK[start : start + part_MK.shape[0]].copy_(part_MK)

    def pack(self) -> None:
        """Rearrange the filled weight as it is multiplied fastest, in no more space, where that is known to work.

        The first product without gradients does it. On two cores of Zen 5: from 16 to 45 GB/s at one token, from 120 to
        390 GFLOP/s at 32, from 200 to 475 at 2048.
        """
        self.is_final = True
        if _HAS_ONEDNN and self.weight_NK.is_cpu and self.weight_NK.dtype is torch.float32:
            with torch.inference_mode(mode=False):  # so that training may use the result
                self.packed = _pack(self.weight_NK.detach())
        if self.packed is not None:
            self.weight_NK = self.packed.panels_XKP

    def dense(self) -> Tensor:
        """The weight in rows; a copy if it is packed."""
        if self.packed is None:
            return self.weight_NK
        return self.packed.panels_XKP.transpose(1, 2).flatten(0, 1).float()

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows by index, for embeddings."""
        if self.packed is None:
            return self.weight_NK[ids_T]
        return self.packed.panels_XKP[ids_T // _PANEL, :, ids_T % _PANEL].float()


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight rounded to 8 bits with one scale per output channel; activations keep their precision."""

    weight_NK: Tensor
    """int8."""
    scale_N: Tensor
    """float32."""

    @staticmethod
    def empty(num_out: int, num_in: int, device: torch.device) -> Int8Weight:
        """Storage to be filled row range by row range."""
        return Int8Weight(
            torch.empty(num_out, num_in, dtype=torch.int8, device=device),
            torch.empty(num_out, dtype=torch.float32, device=device),
        )

    def fill(self, start: int, part_MK: Tensor) -> None:
        """Quantise rows `start` to `start + M`, symmetric, to the nearest."""
        stop = start + part_MK.shape[0]
        scale_M = part_MK.float().abs().amax(dim=1).clamp(min=1e-12) / 127.0
        self.scale_N[start:stop] = scale_M
        self.weight_NK[start:stop] = (part_MK.float() / scale_M[:, None]).round().to(torch.int8)

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows by index, dequantised."""
        return self.weight_NK[ids_T].float() * self.scale_N[ids_T][:, None]


Weight = DenseWeight | Int8Weight


def matmul(x_TK: Tensor, weight: Weight, bias_N: Tensor | None = None, impl: Impl = "auto") -> Tensor:
    """x W^T + b: y_TN."""
    fast = impl == "native" or (impl == "auto" and native.usable(x_TK))
    if isinstance(weight, DenseWeight):
        if not fast or not _HAS_ONEDNN or (bias_N is not None and bias_N.requires_grad):
            return F.linear(x_TK, weight.dense(), bias_N)
        if not weight.is_final:
            weight.pack()
        return _matmul_dense(x_TK.contiguous(), weight, bias_N)
    if fast:
        y_TN = _matmul_int8(x_TK.contiguous(), weight)
        return y_TN if bias_N is None else y_TN.add_(bias_N)
    y_TN = F.linear(x_TK, weight.weight_NK.to(x_TK.dtype)) * weight.scale_N.to(x_TK.dtype)
    return y_TN if bias_N is None else y_TN + bias_N


def _onednn(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    y_TN: Tensor = torch.ops.mkldnn._linear_pointwise(x_TK, weight_NK, bias_N, "none", [], "")
    return y_TN


def _matmul_dense(x_TK: Tensor, weight: DenseWeight, bias_N: Tensor | None) -> Tensor:
    if weight.packed is None:
        return _onednn(x_TK, weight.weight_NK, bias_N)
    panels_XKP, opaque = weight.packed
    if x_TK.shape[0] <= (_PANELS_MAX_TOKENS if opaque is not None else _BF16_PANELS_MAX_TOKENS):
        return _matmul_panels(x_TK, panels_XKP, bias_N)
    return _matmul_widened(x_TK, panels_XKP, bias_N) if opaque is None else _onednn(x_TK, opaque, bias_N)


def _matmul_widened(x_TK: Tensor, panels_XKP: Tensor, bias_N: Tensor | None) -> Tensor:
    """Through fp32 panels that oneDNN multiplies, some rows of the weight at a time."""
    num_panels, num_in, _ = panels_XKP.shape
    panels_per_part = _panels_per_part(num_panels, num_in)
    parts = []
    for start in range(0, num_panels, panels_per_part):
        part_XKP = panels_XKP[start : start + panels_per_part]
        scratch = _scratch(part_XKP.shape[0] * _PANEL, num_in)
        assert scratch is not None and scratch.opaque is not None
        scratch.panels_XKP.copy_(part_XKP)
        bias_M = None if bias_N is None else bias_N[start * _PANEL : (start + panels_per_part) * _PANEL]
        parts.append(_onednn(x_TK, scratch.opaque, bias_M))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _panels_per_part(num_panels: int, num_in: int) -> int:
    return min(num_panels, max(1, _WIDENED_BYTES // (4 * _PANEL * num_in)))


@cache
def _scratch(num_out: int, num_in: int) -> _Packed | None:
    """Space for a weight of that shape in oneDNN's order; None if the order is not that of panels."""
    return _pack_fp32(torch.rand(num_out, num_in))


def _pack(weight_NK: Tensor) -> _Packed | None:
    num_out, num_in = weight_NK.shape
    if num_out % _PANEL:
        return None
    narrow_NK = weight_NK.bfloat16()
    if torch.equal(narrow_NK.float(), weight_NK):
        num_panels = num_out // _PANEL
        per_part = _panels_per_part(num_panels, num_in)
        if all(_scratch(panels * _PANEL, num_in) for panels in {per_part, num_panels % per_part or per_part}):
            panels_XKP = narrow_NK.view(num_panels, _PANEL, num_in).transpose(1, 2).contiguous()
            return _Packed(panels_XKP, None)
    return _pack_fp32(weight_NK)


def _pack_fp32(weight_NK: Tensor) -> _Packed | None:
    """The weight in oneDNN's order, if that is (panel, input feature, output feature of the panel)."""
    opaque = torch.ops.mkldnn._reorder_linear_weight(weight_NK.contiguous(), None)
    if torch.ops.mkldnn._nbytes(opaque) != weight_NK.nbytes:
        return None
    memory = (ctypes.c_float * weight_NK.numel()).from_address(torch.ops.mkldnn.data_ptr(opaque))
    panels_XKP = torch.frombuffer(memory, dtype=torch.float32).view(-1, weight_NK.shape[1], _PANEL)
    samples = ((0, weight_NK[:_PANEL]), (-1, weight_NK[-_PANEL:]))
    same = all(torch.equal(panels_XKP[panel].T, rows_NK) for panel, rows_NK in samples)
    return _Packed(panels_XKP, opaque) if same else None


def _matmul_panels(x_TK: Tensor, panels_XKP: Tensor, bias_N: Tensor | None) -> Tensor:
    num_tokens, num_in = x_TK.shape
    num_panels = panels_XKP.shape[0]
    rows = num_tokens if num_tokens <= 1 else -(-num_tokens // 4) * 4
    if rows != num_tokens:
        x_TK = F.pad(x_TK, (0, 0, 0, rows - num_tokens))
    y_TN = x_TK.new_empty(rows, num_panels * _PANEL)
    threads = native.threads_for(panels_XKP.numel(), _WEIGHTS_PER_THREAD)
    bias = 0 if bias_N is None else bias_N.data_ptr()
    addresses = y_TN.data_ptr(), x_TK.data_ptr(), panels_XKP.data_ptr(), bias
    _panel_linear.run(threads, *addresses, rows, num_panels, num_in, panels_XKP.itemsize)
    return y_TN[:num_tokens]


@kernel("qqqqqqqq")
def _panel_linear(arguments: int, thread: int, num_threads: int) -> None:
    """Blocks of 64 input features of a panel with 4 tokens at a time.

    While a block is used the next one is fetched, a part with each 4 tokens: computing and waiting for memory happen at
    the same time, as they do not in oneDNN or with a plain prefetch (fp32, 32 tokens: 22 ms instead of 29 and 26).
    """
    y, x, panels, bias, num_tokens, num_panels, num_in, item = int64s(arguments, 8)
    num_out = num_panels * _PANEL
    first, stop = share(num_panels, thread, num_threads)
    for panel in range(first, stop):
        y_panel = y + 4 * panel * _PANEL
        for token in range(num_tokens):
            _begin(bias + 4 * panel * _PANEL if bias != 0 else 0, float32s(y_panel + 4 * token * num_out, _PANEL))
        for k in range(0, num_in, _BLOCK):
            block, steps = panels + item * _PANEL * (panel * num_in + k), min(_BLOCK, num_in - k)
            if item == 2:
                _add_bf16_block(y_panel, x + 4 * k, block, num_tokens, num_out, num_in, steps)
            else:
                _add_block(y_panel, x + 4 * k, block, num_tokens, num_out, num_in, steps)


@part
def _begin(bias: int, y_P: Any) -> None:
    for p in range(_PANEL):
        y_P[p] = 0
    if bias != 0:
        bias_P = float32s(bias, _PANEL)
        for p in range(_PANEL):
            y_P[p] = bias_P[p]


@part
def _add_block(y: int, x: int, block: int, num_tokens: int, num_out: int, num_in: int, steps: int) -> None:
    ahead, size = block + 4 * _PANEL * _BLOCK, 4 * _PANEL * steps
    x_stride, y_stride, stride = 4 * num_in, 4 * num_out, 4 * _PANEL
    if num_tokens == 1:
        add_product_1_row_64_columns_4_lines(x, x_stride, block, stride, y, y_stride, steps, ahead)
    elif num_tokens == 4:
        add_product_4_rows_64_columns_4_lines(x, x_stride, block, stride, y, y_stride, steps, ahead)
    elif num_tokens < 16:
        for token in range(0, num_tokens, 4):
            fetched = ahead + token // 4 * size // 2 if token < 8 else block  # what is there costs nothing
            x_rows, y_rows = x + token * x_stride, y + token * y_stride
            add_product_4_rows_64_columns_2_lines(x_rows, x_stride, block, stride, y_rows, y_stride, steps, fetched)
    else:
        for token in range(0, num_tokens, 4):
            fetched = ahead + token // 4 * size // 4 if token < 16 else block
            x_rows, y_rows = x + token * x_stride, y + token * y_stride
            add_product_4_rows_64_columns_1_line(x_rows, x_stride, block, stride, y_rows, y_stride, steps, fetched)


@part
def _add_bf16_block(y: int, x: int, block: int, num_tokens: int, num_out: int, num_in: int, steps: int) -> None:
    ahead, size = block + 2 * _PANEL * _BLOCK, 2 * _PANEL * steps
    x_stride, y_stride, stride = 4 * num_in, 4 * num_out, 2 * _PANEL
    if num_tokens == 1:
        add_product_1_row_64_bf16_columns_2_lines(x, x_stride, block, stride, y, y_stride, steps, ahead)
    elif num_tokens == 4:
        add_product_4_rows_64_bf16_columns_2_lines(x, x_stride, block, stride, y, y_stride, steps, ahead)
    else:
        for token in range(0, num_tokens, 4):
            fetched = ahead + token // 4 * size // 2 if token < 8 else block
            x_rows, y_rows = x + token * x_stride, y + token * y_stride
            add_product_4_rows_64_bf16_columns_1_line(x_rows, x_stride, block, stride, y_rows, y_stride, steps, fetched)


def _matmul_int8(x_TK: Tensor, weight: Int8Weight) -> Tensor:
    num_tokens, num_in = x_TK.shape
    num_out = weight.weight_NK.shape[0]
    if num_tokens > _INT8_MAX_TOKENS_IN_PLACE and _HAS_ONEDNN:
        return _matmul_dequantised(x_TK, weight)
    y_TN = x_TK.new_empty(num_tokens, num_out)
    threads = native.threads_for(num_out * num_in, _WEIGHTS_PER_THREAD)
    addresses = (y_TN.data_ptr(), x_TK.data_ptr(), weight.weight_NK.data_ptr(), weight.scale_N.data_ptr())
    _int8_linear.run(threads, *addresses, num_tokens, num_out, num_in)
    return y_TN


def _matmul_dequantised(x_TK: Tensor, weight: Int8Weight) -> Tensor:
    num_out, num_in = weight.weight_NK.shape
    rows_per_part = min(num_out, max(_PANEL, _DEQUANTISED_BYTES // (4 * num_in)))
    dense_MK = x_TK.new_empty(rows_per_part, num_in)
    threads = native.threads_for(dense_MK.numel(), _WEIGHTS_PER_THREAD)
    parts = []
    for start in range(0, num_out, rows_per_part):
        rows = min(rows_per_part, num_out - start)
        weight_MK, scale_M = weight.weight_NK[start : start + rows], weight.scale_N[start : start + rows]
        _dequantise.run(threads, weight_MK.data_ptr(), scale_M.data_ptr(), dense_MK.data_ptr(), rows, num_in)
        parts.append(_onednn(x_TK, dense_MK[:rows], None))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@kernel("qqqqq")
def _dequantise(arguments: int, thread: int, num_threads: int) -> None:
    weight, scale, dense, rows, size = int64s(arguments, 5)
    scale_N = float32s(scale, rows)
    first, stop = share(rows, thread, num_threads)
    for row in range(first, stop):
        weight_K, dense_K = int8s(weight + row * size, size), float32s(dense + 4 * row * size, size)
        factor = scale_N[row]
        for k in range(size):
            dense_K[k] = float32(weight_K[k]) * factor


@kernel("qqqqqqq")
def _int8_linear(arguments: int, thread: int, num_threads: int) -> None:
    """Tiles of 4 rows of the weight by 4 tokens: 16 sums stay in registers while each weight is converted once."""
    y, x, weight, scale, num_tokens, num_out, num_in = int64s(arguments, 7)
    scale_N = float32s(scale, num_out)
    first, stop = share((num_out + _ROW_BLOCK - 1) // _ROW_BLOCK, thread, num_threads)
    for block in range(first, stop):
        row, last_row = _ROW_BLOCK * block, min(num_out, _ROW_BLOCK * (block + 1))
        if block + 1 < stop:
            prefetch(weight + last_row * num_in, _ROW_BLOCK * num_in)
        for token in range(0, num_tokens, 4):  # inside the block, so that a line of y is written in one go
            x_tile = x + 4 * token * num_in
            for tile_row in range(row, last_row - 3, 4):
                y_tile, weight_tile = y + 4 * (token * num_out + tile_row), weight + tile_row * num_in
                scale_4 = float32s(scale + 4 * tile_row, 4)
                if token == num_tokens - 1:
                    _four_rows(y_tile, x_tile, weight_tile, scale_4, num_in)
                else:
                    _tile(y_tile, x_tile, weight_tile, scale_4, min(4, num_tokens - token), num_out, num_in)
        for single in range(last_row - (last_row - row) % 4, last_row):
            _one_row(y + 4 * single, x, weight + single * num_in, scale_N[single], num_tokens, num_out, num_in)


@part
def _tile(y: int, x: int, weight: int, scale_4: Any, tokens: int, num_out: int, num_in: int) -> None:
    """4 rows by 2 to 4 tokens; places beyond the last token repeat it."""
    second, third, fourth = 1, min(2, tokens - 1), min(3, tokens - 1)
    w0, w1 = int8s(weight, num_in), int8s(weight + num_in, num_in)
    w2, w3 = int8s(weight + 2 * num_in, num_in), int8s(weight + 3 * num_in, num_in)
    x0, x1 = float32s(x, num_in), float32s(x + 4 * second * num_in, num_in)
    x2, x3 = float32s(x + 4 * third * num_in, num_in), float32s(x + 4 * fourth * num_in, num_in)
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = float32(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = float32(0)
    for k in range(num_in):
        a0, a1, a2, a3 = float32(w0[k]), float32(w1[k]), float32(w2[k]), float32(w3[k])
        b0, b1, b2, b3 = x0[k], x1[k], x2[k], x3[k]
        s00, s01, s02, s03 = s00 + b0 * a0, s01 + b0 * a1, s02 + b0 * a2, s03 + b0 * a3
        s10, s11, s12, s13 = s10 + b1 * a0, s11 + b1 * a1, s12 + b1 * a2, s13 + b1 * a3
        s20, s21, s22, s23 = s20 + b2 * a0, s21 + b2 * a1, s22 + b2 * a2, s23 + b2 * a3
        s30, s31, s32, s33 = s30 + b3 * a0, s31 + b3 * a1, s32 + b3 * a2, s33 + b3 * a3
    _store(y, s00, s01, s02, s03, scale_4)
    _store(y + 4 * second * num_out, s10, s11, s12, s13, scale_4)
    _store(y + 4 * third * num_out, s20, s21, s22, s23, scale_4)
    _store(y + 4 * fourth * num_out, s30, s31, s32, s33, scale_4)


@part
def _four_rows(y: int, x: int, weight: int, scale_4: Any, num_in: int) -> None:
    w0, w1 = int8s(weight, num_in), int8s(weight + num_in, num_in)
    w2, w3 = int8s(weight + 2 * num_in, num_in), int8s(weight + 3 * num_in, num_in)
    x_K = float32s(x, num_in)
    s0 = s1 = s2 = s3 = float32(0)
    for k in range(num_in):
        b = x_K[k]
        s0 += b * float32(w0[k])
        s1 += b * float32(w1[k])
        s2 += b * float32(w2[k])
        s3 += b * float32(w3[k])
    _store(y, s0, s1, s2, s3, scale_4)


@part
def _one_row(y: int, x: int, weight: int, scale: float, num_tokens: int, num_out: int, num_in: int) -> None:
    weight_K = int8s(weight, num_in)
    for token in range(num_tokens):
        x_K = float32s(x + 4 * token * num_in, num_in)
        total = float32(0)
        for k in range(num_in):
            total += x_K[k] * float32(weight_K[k])
        float32s(y + 4 * token * num_out, 1)[0] = total * scale


@part
def _store(y: int, s0: float, s1: float, s2: float, s3: float, scale_4: Any) -> None:
    y_4 = float32s(y, 4)
    y_4[0] = s0 * scale_4[0]
    y_4[1] = s1 * scale_4[1]
    y_4[2] = s2 * scale_4[2]
    y_4[3] = s3 * scale_4[3]
