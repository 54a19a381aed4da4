"""Writing safetensors files tensor by tensor, so that no more than a piece of one tensor is copied at a time.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


class TensorSpec(NamedTuple):
    """A tensor that is going to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Iterable[Tensor]]
    """Its values, as consecutive ranges of the first dimension, of any floating type."""

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensor_file(path: Path, tensors: Mapping[str, TensorSpec]) -> None:
    """One safetensors file. Errors: OSError; ValueError when a reader gives more or less than its spec says."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    # Wide types first, as readers view the bytes in place and need them aligned.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    start = 0
    for name, spec in ordered:
        stop = start + spec.num_bytes
        header[name] = {"dtype": TYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, spec in ordered:
            written = sum(file.write(_raw(rows, spec.dtype)) for rows in spec.read())
            if written != spec.num_bytes:
                raise ValueError(f"tensor {name!r}: {written} bytes were given, {spec.num_bytes} announced")


def tensor_spec(tensor: Tensor) -> TensorSpec:
    """A tensor that is written as it is, bit for bit."""
    return TensorSpec(tuple(tensor.shape), tensor.dtype, lambda: [tensor])


def _raw(rows: Tensor, dtype: torch.dtype) -> memoryview:
    flat = rows.detach().to(device="cpu", dtype=dtype).contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
