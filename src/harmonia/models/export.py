"""Saving a whole model in transformers' format: config.json, tokenizer, and safetensors in shards.

Weights are written piece by piece as they are read back from the decoder, so that no second copy of the model is made.
Shapes: E features; N outputs, K inputs of a weight; r rank.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harmonia.errors import UnsupportedModelError
from harmonia.layers.adapters import LoraMatrices
from harmonia.layers.embedding import Embedding
from harmonia.layers.linear import Linear
from harmonia.layers.parameter import Parameter, Vector
from harmonia.models import gemma3
from harmonia.models.checkpoint import SafetensorsFolder
from harmonia.models.config_export import config_values, generation_values
from harmonia.models.decoder import Decoder
from harmonia.models.source import ModelSource
from harmonia.models.tensor_file import TensorSpec, tensor_spec, write_tensor_file
from harmonia.models.tokenizer_export import tokenizer_files, write_tokenizer

SHARD_BYTES = 4 << 30
SCALAR_HEAD = "score.weight"
"""The scalar head's name in transformers' classes for sequence classification, of every family."""
_PIECE_ITEMS = 1 << 22
_SMALL_FILES = 1 << 20
_GGUF_TOKENIZER_BYTES = 32 << 20


def write_model(
    folder: Path,
    source: ModelSource,
    decoder: Decoder,
    scalar_head: Tensor | None = None,
    *,
    adapter: Mapping[str, LoraMatrices] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model that `AutoModelForCausalLM.from_pretrained` and `open_model` open, in the decoder's own precision.

    source: what the decoder was loaded from; configuration and tokenizer come from there.
    scalar_head: one row on the final hidden state; then `AutoModelForSequenceClassification` opens the folder as well.
    adapter: low-rank changes that are added to the weights, by module path such as `model.layers.0.self_attn.q_proj`.
    Errors: OSError; UnsupportedModelError when the source's own files are gone.
    """
    dtype = decoder.fmt.dtype
    config = config_values(source, str(dtype).removeprefix("torch."), scalar_head=scalar_head is not None)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation_values(source))
    write_tokenizer(folder, source)
    changes = {f"{path}.weight": lora for path, lora in (adapter or {}).items()}
    tensors = {}
    for place in _places(decoder):
        read = partial(_read, decoder, place)
        if place.parameter.name in changes:
            read = partial(_read_merged, decoder, place, changes[place.parameter.name])
        tensors[place.parameter.name] = TensorSpec(place.parameter.shape, dtype, read)
    if scalar_head is not None:
        tensors[SCALAR_HEAD] = tensor_spec(scalar_head.reshape(1, -1))
    _write_shards(folder, tensors, shard_bytes)


def model_bytes(source: ModelSource, decoder: Decoder) -> int:
    """About what `write_model` writes, never less."""
    weights = sum(math.prod(parameter.shape) for parameter in decoder.parameters()) * decoder.fmt.dtype.itemsize
    return weights + tokenizer_bytes(source) + _SMALL_FILES


def tokenizer_bytes(source: ModelSource) -> int:
    """About what the tokenizer's files take."""
    if source.tokenizer_dir is None:
        return _GGUF_TOKENIZER_BYTES
    return sum(file.stat().st_size for file in tokenizer_files(source))


def read_parameter(decoder: Decoder, name: str) -> Tensor:
    """One tensor as a checkpoint would hold it, in the decoder's precision: a copy. KeyError for an unknown name."""
    found = next((place for place in _places(decoder) if place.parameter.name == name), None)
    if found is None:
        raise KeyError(name)
    return torch.cat(list(_read(decoder, found)))


class _Place(NamedTuple):
    """Where a parameter begins in its storage."""

    parameter: Parameter
    start: int


def _places(decoder: Decoder) -> list[_Place]:
    """Parameters that share a storage stand in it one after another, in the order in which they are named."""
    parameters = list(decoder.parameters())  # held, so that no two storages get the same id
    used: Counter[int] = Counter()
    places = []
    for parameter in parameters:
        places.append(_Place(parameter, used[id(parameter.storage)]))
        used[id(parameter.storage)] += parameter.shape[0]
    return places


def _read(decoder: Decoder, place: _Place) -> Iterator[Tensor]:
    """A tensor as a checkpoint would hold it, as consecutive ranges of its first dimension."""
    parameter, first = place
    storage, num_rows = parameter.storage, parameter.shape[0]
    with torch.no_grad():
        if isinstance(storage, Vector):
            yield _without_offset(decoder, parameter.name, storage.values[first : first + num_rows].detach())
            return
        assert isinstance(storage, Linear | Embedding), f"{parameter.name} is kept in a {type(storage).__name__}"
        step = max(1, _PIECE_ITEMS // parameter.shape[1])
        for start in range(0, num_rows, step):
            rows = torch.arange(first + start, first + min(start + step, num_rows), device=decoder.fmt.device)
            yield storage.weight.rows(rows).detach().to(decoder.fmt.dtype)


def _read_merged(decoder: Decoder, place: _Place, lora: LoraMatrices) -> Iterator[Tensor]:
    """A weight with an adapter's change of it, added in fp32."""
    start = 0
    for rows_NK in _read(decoder, place):
        stop = start + rows_NK.shape[0]
        change_NK = lora.b_Nr[start:stop].float() @ lora.a_rK.float()
        yield torch.add(rows_NK.float(), change_NK, alpha=lora.scale).to(rows_NK.dtype)
        start = stop


def read_scalar_head(source: ModelSource) -> Tensor | None:
    """The scalar head of a model that was saved with one: head_1E. Errors: UnsupportedModelError for another shape."""
    entry = source.files.entries.get(SCALAR_HEAD) if isinstance(source.files, SafetensorsFolder) else None
    if entry is None:
        return None
    expected = (1, source.config.hidden_size)
    if entry.shape != expected:
        message = f"{entry.file}: {SCALAR_HEAD} has shape {list(entry.shape)}; a scalar head has {list(expected)}"
        raise UnsupportedModelError(message, file=str(entry.file), tensor=SCALAR_HEAD)
    try:
        with safe_open(entry.file, framework="pt") as file:
            return file.get_tensor(entry.stored_name)
    except (SafetensorError, OSError) as error:
        message = f"{entry.file}: tensor {SCALAR_HEAD!r} cannot be read ({error})"
        raise UnsupportedModelError(message, file=str(entry.file), tensor=SCALAR_HEAD) from error


def _without_offset(decoder: Decoder, name: str, values: Tensor) -> Tensor:
    """Gemma's norms hold one more than its checkpoints do."""
    if decoder.config.family != "gemma3" or not name.endswith("norm.weight"):
        return values
    return (values.float() - gemma3.NORM_OFFSET).to(values.dtype)


def _write_shards(folder: Path, tensors: dict[str, TensorSpec], shard_bytes: int) -> None:
    shards: list[dict[str, TensorSpec]] = []
    size = 0
    for name, spec in tensors.items():
        if not shards or size + spec.num_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.num_bytes
    if len(shards) == 1:
        write_tensor_file(folder / "model.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensor_file(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(spec.num_bytes for spec in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(file: Path, values: dict[str, object]) -> None:
    file.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
