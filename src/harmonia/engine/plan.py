"""The outcome of planning: resolved settings, and the table of bytes."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from harmonia.config import EngineConfig, SchedulerConfig
from harmonia.engine.needs import InstanceNeed, PlanRow
from harmonia.errors import InsufficientMemoryError, InvalidRequestError
from harmonia.layers.linear import WeightFormat

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The table of bytes for one model on one device."""

    model: str
    device: str
    precision: str
    rows: tuple[PlanRow, ...]
    available_bytes: int
    kv_cache_len: int
    max_seq_len: int
    num_layers: int = 0
    num_kept: int = 0
    """Layers whose activations training keeps; the others are recomputed, which takes a third longer at most."""
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
        return weight_format(self.device, self.precision)


def weight_format(device: str, precision: str) -> WeightFormat:
    """Type and place of weights in this precision; int8 computes in fp32 on a CPU and in bf16 elsewhere.

    InvalidRequestError for a precision that nobody knows.
    """
    int8 = precision == "int8"
    compute = "float32" if int8 and device == "cpu" else "bfloat16" if int8 else precision
    if compute not in _DTYPES:
        known = ", ".join(["auto", *_DTYPES, "int8"])
        raise InvalidRequestError(f"precision is one of {known}; got {precision!r}", field="precision")
    return WeightFormat(_DTYPES[compute], torch.device(device), int8)


def gib(num_bytes: int) -> str:
    """Bytes for people."""
    return f"{num_bytes / 2**30:.2f} GiB"
