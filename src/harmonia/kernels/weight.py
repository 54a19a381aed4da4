"""The forms in which a matrix of weights is kept.

Shapes: T tokens, K input features, N output features, M rows of a part, X panels of P output features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from harmonia.errors import InvalidRequestError
from harmonia.kernels.fp8_weight import Fp8Weight

PANEL = 64
HAS_ONEDNN = torch.backends.mkldnn.is_available()


@cache
def has_panels() -> bool:
    """Whether fp32 weights are kept in panels on this CPU: with AVX-512, for which the kernel was written."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@dataclass(slots=True)
class DenseWeight:
    """A weight in the compute type."""

    weight_NK: Tensor
    """After `pack`, `panels_XKP` instead."""
    panels_XKP: Tensor | None = None
    """An fp32 weight on the CPU, as panels of 64 output features: fp32, or bf16 if that loses nothing."""
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
        assert self.panels_XKP is None, "a weight is filled before it is used"
        self.weight_NK[start : start + part_MK.shape[0]].copy_(part_MK)

    def pack(self) -> None:
        """Rearrange the filled weight as it is multiplied fastest, in no more space, where that is known to work.

        The first fast product does it. On two cores of Zen 5: from 16 to 45 GB/s at one token, from 120 to
        390 GFLOP/s at 32, from 200 to 475 at 2048.
        """
        if self.is_final:
            return
        self.is_final = True
        if has_panels() and self.weight_NK.is_cpu and self.weight_NK.dtype is torch.float32:
            with torch.inference_mode(mode=False):  # so that training may use the result
                self._keep(_panels(self.weight_NK.detach()))

    def require_grad(self) -> Tensor:
        """Make the weight trainable: the autograd leaf, in the layout in which it is stored.

        The leaf is the memory that every product reads, so writing it in place changes what is served at once. Panels
        in bf16 become fp32 first, in twice the space. Gradients are fp32, in the leaf's layout.
        """
        if self.leaf is not None:
            return self.leaf
        self.is_final = True
        with torch.inference_mode(mode=False):
            if self.panels_XKP is not None:
                self._keep(self.panels_XKP.float())
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
        if self.panels_XKP is None:
            return self.weight_NK
        return self.panels_XKP.transpose(1, 2).flatten(0, 1).float()

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows by index, for embeddings."""
        if self.panels_XKP is None:
            return self.weight_NK[ids_T]
        return self.panels_XKP[ids_T // PANEL, :, ids_T % PANEL].float()

    def _keep(self, panels_XKP: Tensor | None) -> None:
        if panels_XKP is not None:
            self.panels_XKP = self.weight_NK = panels_XKP


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


def _panels(weight_NK: Tensor) -> Tensor | None:
    """In panels, if there are whole ones: in bf16 if that loses nothing, as with most published weights."""
    num_out, num_in = weight_NK.shape
    if num_out % PANEL:
        return None
    narrow_NK = weight_NK.bfloat16()
    kept_NK = narrow_NK if torch.equal(narrow_NK.float(), weight_NK) else weight_NK
    return kept_NK.view(-1, PANEL, num_in).transpose(1, 2).clone(memory_format=torch.contiguous_format)
