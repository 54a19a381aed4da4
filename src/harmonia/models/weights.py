"""Filling a decoder from files, tensor by tensor in chunks of rows, without a second copy of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from harmonia.errors import UnsupportedModelError
from harmonia.kernels.fp8_weight import ScaledRows
from harmonia.layers.linear import WeightFormat
from harmonia.layers.parameter import Parameter
from harmonia.models.config import ModelConfig
from harmonia.models.decoder import Decoder
from harmonia.models.families import build_decoder
from harmonia.models.gguf import GgufFile
from harmonia.models.gguf_tensors import GgufTensors
from harmonia.models.safetensors_reader import CHUNK_ITEMS, SafetensorsReader
from harmonia.models.source import ModelSource


class TensorFiles(Protocol):
    """Tensors by canonical name."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor that the files hold."""
        ...

    def read(self, name: str) -> Iterator[Tensor | ScaledRows]:
        """The tensor as consecutive ranges of its first dimension."""
        ...


def load_decoder(source: ModelSource, fmt: WeightFormat, progress: Callable[[float], None] | None = None) -> Decoder:
    """Allocate a decoder and fill it. `progress` is called with the share done, 0 to 1.

    Errors: UnsupportedModelError naming the first missing, unexpected or misshaped tensor.
    """
    files = _tensor_files(source)
    # On the meta device, so that wrong sizes are found before memory is taken for them.
    empty = build_decoder(source.config, replace(fmt, device=torch.device("meta")))
    _check(files.shapes(), list(empty.parameters()), source)
    with _one_thread():
        decoder = build_decoder(source.config, fmt)
        total = sum(math.prod(parameter.shape) for parameter in decoder.parameters())
        done = 0
        for parameter in decoder.parameters():
            start = 0
            for rows in files.read(parameter.name):
                values = rows.values_MK if isinstance(rows, ScaledRows) else rows
                parameter.take(start, rows)
                start += values.shape[0]
                done += values.numel()
                if progress is not None:
                    progress(done / total)
        decoder.pack()
    return decoder


@contextmanager
def _one_thread() -> Iterator[None]:
    """Filling is a long row of small copies, bound by memory and the file.

    Where other processes start at the same time, threads wait for each other in each of them: SmolLM2 on two busy cores
    loads in 1.2 s with one thread and in 4 to 24 s with two.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _tensor_files(source: ModelSource) -> TensorFiles:
    if isinstance(source.files, GgufFile):
        return GgufTensors(source.files, source.config, CHUNK_ITEMS)
    return SafetensorsReader(source.files, source.config.fp8_side)


def _check(found: Mapping[str, tuple[int, ...]], parameters: list[Parameter], source: ModelSource) -> None:
    expected = {parameter.name: parameter.shape for parameter in parameters}
    for name, shape in expected.items():
        if name not in found:
            raise _wrong(source, name, f"is missing, expected shape {list(shape)}")
        if found[name] != shape:
            raise _wrong(source, name, f"has shape {list(found[name])}, expected {list(shape)}")
    for name in found:
        if name not in expected and not _is_ignorable(name, source.config):
            raise _wrong(source, name, f"is not part of a {source.config.family} model of this configuration")


def _is_ignorable(name: str, config: ModelConfig) -> bool:
    # A scoring model's head is read by whoever spawns it as one.
    return name == "score.weight" or (name == "lm_head.weight" and config.tie_embeddings)


def _wrong(source: ModelSource, tensor: str, problem: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{source.path}: tensor {tensor!r} {problem}", file=str(source.path), tensor=tensor)
