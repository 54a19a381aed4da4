"""The forms in which a matrix of weights is kept.

Shapes: T tokens, K input features, N output features, M rows of a part, X panels of P output features.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from harmonia.errors import InvalidRequestError
from harmonia.kernels.fp8_weight import Fp8Weight

PANEL = 64
HAS_ONEDNN = torch.backends.mkldnn.is_available()
_WIDENED_BYTES = 32 << 20


class Packed(NamedTuple):
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
    packed: Packed | None = None
    is_final: bool = False
    """The layout no longer changes: `pack` or `require_grad` was called."""
    leaf: Tensor | None = None
    """While the weight is trained: the memory of `weight_NK` as autograd sees it, in its layout."""
    invariant: bool = False
    """Products sum in one order for any number of rows."""

    @staticmethod
    def empty(
        num_out: int, num_in: int, dtype: torch.dtype, device: torch.device, *, invariant: bool = False
    ) -> DenseWeight:
        """Storage to be filled row range by row range."""
        return DenseWeight(torch.empty(num_out, num_in, dtype=dtype, device=device), invariant=invariant)

    def fill(self, start: int, part_MK: Tensor) -> None:
        """Write rows `start` to `start + M`."""
        assert self.packed is None, "a weight is filled before it is used"
        self.weight_NK[start : start + part_MK.shape[0]].copy_(part_MK)

    def pack(self) -> None:
        """Rearrange the filled weight as it is multiplied fastest, in no more space, where that is known to work.

        The first fast product does it. On two cores of Zen 5: from 16 to 45 GB/s at one token, from 120 to
        390 GFLOP/s at 32, from 200 to 475 at 2048.
        """
        if self.is_final:
            return
        self.is_final = True
        if HAS_ONEDNN and self.weight_NK.is_cpu and self.weight_NK.dtype is torch.float32:
            with torch.inference_mode(mode=False):  # so that training may use the result
                self._keep(_pack(self.weight_NK.detach()))

    def require_grad(self) -> Tensor:
        """Make the weight trainable: the autograd leaf, in the layout in which it is stored.

        The leaf is the memory that every product reads, so writing it in place changes what is served at once. Panels
        in bf16 become fp32 first, in twice the space. Gradients are fp32, in the leaf's layout.
        """
        if self.leaf is not None:
            return self.leaf
        self.is_final = True
        with torch.inference_mode(mode=False):
            if self.packed is not None and self.packed.opaque is None:
                rows_NK = self.dense()
                self.packed, self.weight_NK = None, rows_NK
                self._keep(_pack_fp32(rows_NK))
            if self.weight_NK.is_inference():  # autograd refuses what was made in inference mode
                self.weight_NK = self.weight_NK.clone()
            self.leaf = self.weight_NK.detach().requires_grad_()
        if self.leaf.dtype is not torch.float32:
            self.leaf.grad_dtype = torch.float32
        return self.leaf

    def leaf_grad(self) -> Tensor:
        """The fp32 gradient of the leaf, zeros if there is none yet; for what adds to it by itself."""
        assert self.leaf is not None, "only a trained weight has a gradient"
        if self.leaf.grad is None:
            with torch.inference_mode(mode=False):
                self.leaf.grad = torch.zeros_like(self.leaf, dtype=torch.float32, requires_grad=False)
        return self.leaf.grad

    def freeze(self) -> None:
        """Train it no longer; the values and their layout stay."""
        self.leaf = None

    def dense(self) -> Tensor:
        """The weight in rows; a copy if it is packed."""
        if self.packed is None:
            return self.weight_NK
        return self.packed.panels_XKP.transpose(1, 2).flatten(0, 1).float()

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows by index, for embeddings."""
        if self.packed is None:
            return self.weight_NK[ids_T]
        return self.packed.panels_XKP[ids_T // PANEL, :, ids_T % PANEL].float()

    def _keep(self, packed: Packed | None) -> None:
        if packed is not None:
            self.packed, self.weight_NK = packed, packed.panels_XKP


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """A weight rounded to 8 bits with one scale per output channel; activations keep their precision."""

    weight_NK: Tensor
    """int8."""
    scale_N: Tensor
    """float32."""
    invariant: bool = False
    """As for `DenseWeight`."""

    @staticmethod
    def empty(num_out: int, num_in: int, device: torch.device, *, invariant: bool = False) -> Int8Weight:
        """Storage to be filled row range by row range."""
        return Int8Weight(
            torch.empty(num_out, num_in, dtype=torch.int8, device=device),
            torch.empty(num_out, dtype=torch.float32, device=device),
            invariant,
        )

    @property
    def leaf(self) -> None:
        """Rounded weights are never trained."""
        return None

    def require_grad(self) -> Tensor:
        """Refused: `InvalidRequestError`."""
        raise InvalidRequestError(
            "the weights are kept in int8, and full weights train in float32 or bfloat16; "
            "load the model in one of these, or train an adapter on it"
        )

    def freeze(self) -> None:
        """Nothing to do."""

    def fill(self, start: int, part_MK: Tensor) -> None:
        """Quantise rows `start` to `start + M`, symmetric, to the nearest."""
        stop = start + part_MK.shape[0]
        scale_M = part_MK.float().abs().amax(dim=1).clamp(min=1e-12) / 127.0
        self.scale_N[start:stop] = scale_M
        self.weight_NK[start:stop] = (part_MK.float() / scale_M[:, None]).round().to(torch.int8)

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows by index, dequantised."""
        return self.weight_NK[ids_T].float() * self.scale_N[ids_T][:, None]


Weight = DenseWeight | Int8Weight | Fp8Weight


def panels_per_part(num_panels: int, num_in: int) -> int:
    """How many panels are widened to fp32 at once."""
    return min(num_panels, max(1, _WIDENED_BYTES // (4 * PANEL * num_in)))


@cache
def panel_scratch(num_out: int, num_in: int) -> Packed | None:
    """Space for a weight of that shape in oneDNN's order; None if the order is not that of panels."""
    return _pack_fp32(torch.rand(num_out, num_in))


def _pack(weight_NK: Tensor) -> Packed | None:
    num_out, num_in = weight_NK.shape
    if num_out % PANEL:
        return None
    narrow_NK = weight_NK.bfloat16()
    if torch.equal(narrow_NK.float(), weight_NK):
        num_panels = num_out // PANEL
        per_part = panels_per_part(num_panels, num_in)
        if all(panel_scratch(panels * PANEL, num_in) for panels in {per_part, num_panels % per_part or per_part}):
            panels_XKP = narrow_NK.view(num_panels, PANEL, num_in).transpose(1, 2).contiguous()
            return Packed(panels_XKP, None)
    return _pack_fp32(weight_NK)


def _pack_fp32(weight_NK: Tensor) -> Packed | None:
    """The weight in oneDNN's order, if that is (panel, input feature, output feature of the panel)."""
    opaque = torch.ops.mkldnn._reorder_linear_weight(weight_NK.contiguous(), None)
    if torch.ops.mkldnn._nbytes(opaque) != weight_NK.nbytes:
        return None
    memory = (ctypes.c_float * weight_NK.numel()).from_address(torch.ops.mkldnn.data_ptr(opaque))
    memory.owner = opaque  # type: ignore[attr-defined]  # so that the panels, which a training run may hold on to, keep it alive
    panels_XKP = torch.frombuffer(memory, dtype=torch.float32).view(-1, weight_NK.shape[1], PANEL)
    samples = ((0, weight_NK[:PANEL]), (-1, weight_NK[-PANEL:]))
    same = all(torch.equal(panels_XKP[panel].T, rows_NK) for panel, rows_NK in samples)
    return Packed(panels_XKP, opaque) if same else None
