"""Which weights of a model's files lose nothing in bf16, and so take half the space on a CPU; see kernels/weight.py."""

from __future__ import annotations

from collections.abc import Iterator

from gguf.constants import GGMLQuantizationType
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harmonia.errors import UnsupportedModelError
from harmonia.models.checkpoint import FP8, SafetensorsFolder, TensorEntry
from harmonia.models.gguf_tensors import GgufTensors
from harmonia.models.source import ModelSource

_SAMPLE = 4096
"""Values of a tensor that are looked at: those of a quantised or fp32 tensor are not all exact by chance."""

_PLAIN_TYPES = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
"""Of GGUF files; scales times small integers need more digits than bf16 has."""


def exact_weights(source: ModelSource) -> frozenset[str]:
    """Names of the matrices whose values are exact in bf16, judged by a first few of each: reads little."""
    samples = _safetensors(source.files) if isinstance(source.files, SafetensorsFolder) else _gguf(source)
    return frozenset(name for name, values in samples if bool((values.bfloat16().float() == values.float()).all()))


def _safetensors(folder: SafetensorsFolder) -> Iterator[tuple[str, Tensor]]:
    files: dict[str, list[tuple[str, TensorEntry]]] = {}
    for name, entry in folder.entries.items():
        if len(entry.shape) == 2 and entry.dtype != FP8:  # whose scales need more digits
            files.setdefault(str(entry.file), []).append((name, entry))
    for file, entries in files.items():
        try:
            with safe_open(file, framework="pt") as opened:
                for name, entry in entries:
                    stored = opened.get_slice(entry.stored_name)
                    yield name, stored[: -(-_SAMPLE // entry.shape[1])]
        except (SafetensorError, OSError) as error:
            raise UnsupportedModelError(f"{file}: cannot be read ({error})", file=file) from error


def _gguf(source: ModelSource) -> Iterator[tuple[str, Tensor]]:
    assert not isinstance(source.files, SafetensorsFolder)
    if all(len(tensor.shape) < 2 or tensor.kind not in _PLAIN_TYPES for tensor in source.files.tensors.values()):
        return
    tensors = GgufTensors(source.files, source.config, _SAMPLE)
    for name, shape in tensors.shapes().items():
        if len(shape) == 2:
            yield name, next(tensors.read(name))
