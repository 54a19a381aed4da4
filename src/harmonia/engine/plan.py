"""The outcome of planning: resolved settings, and the table of bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import torch

from harmonia.config import EngineConfig, SchedulerConfig
from harmonia.engine.needs import InstanceNeed, PlanRow
from harmonia.errors import InsufficientMemoryError, InvalidRequestError
from harmonia.kernels.attention_native import HEAD_STEP
from harmonia.kernels.gpu import has_triton
from harmonia.layers.linear import WeightFormat
from harmonia.models.source import ModelSource, open_model

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_INVARIANT_ON_CPU = ("float32", "int8", "fp8")
_ROUNDED = ("int8", "fp8")
"""Precisions of weights alone, or of weights and what is multiplied with them."""


class BackboneKey(NamedTuple):
    """What instances must agree in to share a backbone that nobody changes."""

    path: str
    precision: str
    invariant: bool
    draft: str | None = None
    """Path of the model that proposes tokens."""
    keep_layers: tuple[int, ...] | None = None
    """Layers of the stored model of which it is made; None: all."""

    @property
    def identity(self) -> str:
        """What errors and the prefix index call its weights."""
        return self.path if self.keep_layers is None else f"{self.path}{list(self.keep_layers)}"

    def open(self) -> ModelSource:
        """The model's files, and of them the layers that are kept."""
        source = open_model(self.path)
        return source if self.keep_layers is None else source.cut(self.keep_layers)

    def open_draft(self) -> ModelSource | None:
        """The draft's files."""
        return None if self.draft is None else open_model(self.draft)

    def suits(self, wanted: BackboneKey) -> bool:
        """Whether an instance with that key may use this backbone: one that needs no draft ignores it."""
        return self == wanted or (wanted.draft is None and self._replace(draft=None) == wanted)


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The table of bytes for one model on one device."""

    model: str
    device: str
    precision: str
    invariant: bool = False
    """Results do not depend on the batch."""
    rows: tuple[PlanRow, ...]
    available_bytes: int
    kv_cache_len: int
    max_seq_len: int
    num_layers: int = 0
    num_kept: int = 0
    """Layers whose activations training keeps; the others are recomputed, which takes a third longer at most."""
    num_whole: int = 0
    """Layers of these that keep all of them; the others compute norms and gates again, in a fortieth of the time."""
    max_batch_size: int = 0
    """Tokens of one micro-batch; 0: nothing is trained."""
    levers: tuple[str, ...] = ()
    """What would make it fit; empty when it does."""

    @property
    def total_bytes(self) -> int:
        """Sum of the rows."""
        return sum(row.num_bytes for row in self.rows)

    @property
    def fits(self) -> bool:
        """The device has room for all of it."""
        return self.total_bytes <= self.available_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and for the error's details."""
        plan: dict[str, Any] = msgspec.to_builtins(self)
        return {**plan, "total_bytes": self.total_bytes, "fits": self.fits}

    def require(self) -> None:
        """Raise `InsufficientMemoryError` with table and levers unless it fits."""
        if self.fits:
            return
        raise InsufficientMemoryError(
            f"{self.model} needs {gib(self.total_bytes)} on {self.device}, and {gib(self.available_bytes)} may be "
            f"used. What would help: {'; '.join(self.levers)}",
            **self.to_dict(),
        )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Settings with everything automatic resolved, and the memory they take."""

    config: EngineConfig
    scheduler: SchedulerConfig
    device: str
    precision: str
    num_blocks: int
    max_seq_len: int
    """Longest sequence that may be served."""
    memory: MemoryPlan
    needs: tuple[InstanceNeed, ...] = ()
    """The instances that were counted."""

    @property
    def num_kept(self) -> int:
        """Layers, the last ones, whose activations training keeps."""
        return self.memory.num_kept

    @property
    def max_batch_size(self) -> int:
        """Tokens of one micro-batch, the most that any instance in training asks for; 0 when none trains."""
        return self.memory.max_batch_size

    @property
    def fmt(self) -> WeightFormat:
        """Type and place of the weights."""
        return weight_format(self.device, self.precision, invariant=self.config.invariant)


def weight_format(device: str, precision: str, *, invariant: bool = False) -> WeightFormat:
    """Type and place of weights in this precision; int8 and fp8 compute in fp32 on a CPU and in bf16 elsewhere.

    InvalidRequestError for a precision that nobody knows.
    """
    is_rounded = precision in _ROUNDED
    compute = "float32" if is_rounded and device == "cpu" else "bfloat16" if is_rounded else precision
    if compute not in _DTYPES:
        known = ", ".join(["auto", *_DTYPES, *_ROUNDED])
        raise InvalidRequestError(f"precision is one of {known}; got {precision!r}", field="precision")
    return WeightFormat(_DTYPES[compute], torch.device(device), precision == "int8", invariant, precision == "fp8")


def check_invariant(fmt: WeightFormat, precision: str, head_dim: int) -> None:
    """Raise `InvalidRequestError` if results would depend on the batch though they must not."""
    if not fmt.invariant:
        return
    problem = None
    if fmt.device.type == "cpu":
        if precision not in _INVARIANT_ON_CPU:
            problem = f"on a CPU it computes in float32, not in {precision}: take float32 or int8 (--precision)"
        elif head_dim % HEAD_STEP:
            problem = f"on a CPU heads must have a multiple of {HEAD_STEP} features, and this model's have {head_dim}"
    elif precision == "int8":
        problem = "on a GPU no product with int8 weights keeps its order: take bfloat16, fp8 or float32 (--precision)"
    elif not has_triton():
        problem = "on a GPU its kernels need Triton, which is not installed: pip install triton"
    if problem is not None:
        raise InvalidRequestError(f"invariant mode is not possible: {problem}, or leave it out", field="invariant")


def gib(num_bytes: int) -> str:
    """Bytes for people."""
    return f"{num_bytes / 2**30:.2f} GiB"
