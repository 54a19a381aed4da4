"""Tensors of a safetensors folder, in ranges of rows; those in fp8 come with their scales."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from harmonia.errors import UnsupportedModelError
from harmonia.kernels.fp8_weight import ScaledRows, Tile
from harmonia.models.checkpoint import FP8, SafetensorsFolder, TensorEntry
from harmonia.models.fp8_config import SIDE

CHUNK_ITEMS = 1 << 22
"""Values of a tensor that are converted at once: 16 MiB in fp32."""
_SCALE_NAMES = ("_scale_inv", "_scale")
"""What follows a weight's name: that of quant_method 'fp8' with blocks, and that of all others. Both multiply."""


class SafetensorsReader:
    """Memory-mapped reading; a file stays open only while its tensors are read."""

    def __init__(self, folder: SafetensorsFolder, fp8_side: int | None = None) -> None:
        """fp8_side: as for `ModelConfig`."""
        self._entries = folder.entries
        self._side = fp8_side
        self._scales = {
            name: f"{name}{suffix}"
            for name, entry in self._entries.items()
            for suffix in _SCALE_NAMES
            if entry.dtype == FP8 and f"{name}{suffix}" in self._entries
        }

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor of the folder, scales left out."""
        scales = set(self._scales.values())
        return {name: entry.shape for name, entry in self._entries.items() if name not in scales}

    def read(self, name: str) -> Iterator[Tensor | ScaledRows]:
        """Ranges of rows, as stored. In fp8 each range begins with a block."""
        entry = self._entries[name]
        scaled = self._scale(name, entry) if entry.dtype == FP8 else None
        with _opened(entry) as file:
            if len(entry.shape) < 2:
                yield file.get_tensor(entry.stored_name)
                return
            stored = file.get_slice(entry.stored_name)
            # Whole blocks also where the values are rounded to fp8 in blocks while they are read.
            step = max(1, CHUNK_ITEMS // math.prod(entry.shape[1:]) // SIDE) * SIDE
            for start in range(0, entry.shape[0], step):
                rows = stored[start : start + step]
                if scaled is None:
                    yield rows
                else:
                    scale_GB, tile = scaled
                    last = -(-(start + step) // tile.rows)
                    yield ScaledRows(rows, scale_GB[start // tile.rows : last], tile)

    def _scale(self, name: str, entry: TensorEntry) -> tuple[Tensor, Tile]:
        if self._side is None:
            raise _wrong(entry, "is in fp8, and config.json has no quantization_config that says how")
        if name not in self._scales:
            raise _wrong(entry, f"is in fp8 without a scale: there is no {name}{' or '.join(_SCALE_NAMES)}")
        if len(entry.shape) != 2:
            raise _wrong(entry, f"is in fp8 with {len(entry.shape)} dimensions; only matrices are read")
        num_out, num_in = entry.shape
        tile = Tile(self._side, self._side) if self._side else Tile(1, num_in)
        grid = tile.grid(num_out, num_in)
        scale_entry = self._entries[self._scales[name]]
        with _opened(scale_entry) as file:
            scale: Tensor = file.get_tensor(scale_entry.stored_name).float()
        if not self._side and scale.numel() == 1:  # of the whole matrix
            return scale.reshape(1, 1).expand(num_out, 1), tile
        if scale.numel() != math.prod(grid) or scale.dim() > 2:
            raise _wrong(scale_entry, f"has shape {list(scale_entry.shape)}, expected {list(grid)}")
        return scale.reshape(grid), tile


@contextmanager
def _opened(entry: TensorEntry) -> Iterator[Any]:
    try:
        with safe_open(entry.file, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise _wrong(entry, f"cannot be read ({error})") from error


def _wrong(entry: TensorEntry, problem: str) -> UnsupportedModelError:
    message = f"{entry.file}: tensor {entry.stored_name!r} {problem}"
    return UnsupportedModelError(message, file=str(entry.file), tensor=entry.stored_name)
