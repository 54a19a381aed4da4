"""Headers of safetensors files: which tensors, of which shape, in which file. Reads no tensor, imports no torch."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from harmonia.errors import UnsupportedModelError
from harmonia.models.fields import Fields, read_json

FP8 = "F8_E4M3"
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_ITEM_BYTES |= {FP8: 1}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor stands."""

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it, such as `BF16`."""


@dataclass(frozen=True, slots=True)
class SafetensorsFolder:
    """Tensors of a Hugging Face folder by canonical name (`model.layers.0...`, `lm_head.weight`)."""

    folder: Path
    entries: dict[str, TensorEntry]


def open_safetensors(folder: Path) -> SafetensorsFolder:
    """Read the headers of a folder's safetensors files, by index if there is one.

    Errors: UnsupportedModelError naming the file that is absent, truncated or not safetensors.
    """
    stored: dict[str, TensorEntry] = {}
    for file in _files(folder):
        stored.update(_read_header(file))
    return SafetensorsFolder(folder, {name: entry for key, entry in stored.items() if (name := canonical_name(key))})


def canonical_name(stored: str) -> str | None:
    """The name that a decoder gives to a stored tensor; None for those it has no use for (vision, old buffers)."""
    if stored.startswith(("vision_tower.", "model.vision_tower.", "multi_modal_projector.")):
        return None
    if stored.startswith("model.multi_modal_projector.") or stored.endswith(("rotary_emb.inv_freq", "masked_bias")):
        return None
    name = re.sub(r"^(model\.)?language_model\.(model\.)?(?!lm_head)", "model.", stored)
    name = name.removeprefix("language_model.")
    return f"model.{name}" if name.startswith(("layers.", "embed_tokens.", "norm.")) else name


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).section("weight_map")
        if not weight_map.values:
            raise UnsupportedModelError(f"{index}: 'weight_map' is missing or empty", file=str(index))
        files = [folder / Path(weight_map.text(name)).name for name in weight_map.values]
        for file in dict.fromkeys(files):
            if not file.exists():
                raise UnsupportedModelError(f"{index}: names {file.name}, which is not there", file=str(file))
        return list(dict.fromkeys(files))
    files = sorted(folder.glob("*.safetensors"))
    single = folder / "model.safetensors"
    if single in files:
        return [single]
    if not files:
        kinds = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "no weight files"
        message = f"{folder}: no *.safetensors file ({kinds} found); convert the weights to safetensors"
        raise UnsupportedModelError(message, file=str(folder))
    return files


def _read_header(file: Path) -> dict[str, TensorEntry]:
    header, data_bytes = _read_header_json(file)
    entries: dict[str, TensorEntry] = {}
    for name in header.values:
        if name == "__metadata__":
            continue
        tensor = header.section(name)
        entries[name] = TensorEntry(file, name, tensor.integers("shape"), tensor.text("dtype"))
        _check_extent(tensor, entries[name], data_bytes)
    return entries


def _read_header_json(file: Path) -> tuple[Fields, int]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            message = f"{file}: truncated or not a safetensors file (header of {length} bytes in a file of {size})"
            raise UnsupportedModelError(message, file=str(file))
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{file}: its safetensors header is not JSON ({error})", file=str(file)) from error
    if not isinstance(header, dict):
        raise UnsupportedModelError(f"{file}: its safetensors header is not an object", file=str(file))
    return Fields(header, str(file)), size - 8 - length


def _check_extent(tensor: Fields, entry: TensorEntry, data_bytes: int) -> None:
    dtype = tensor.text("dtype")
    if dtype not in _ITEM_BYTES:
        supported = ", ".join(_ITEM_BYTES)
        message = f"{entry.file}: tensor {entry.stored_name!r} is of type {dtype}. Supported: {supported}."
        raise UnsupportedModelError(message, file=str(entry.file), tensor=entry.stored_name)
    offsets = tensor.integers("data_offsets")
    expected = math.prod(entry.shape) * _ITEM_BYTES[dtype]
    if len(offsets) != 2 or offsets[1] - offsets[0] != expected or not 0 <= offsets[0] <= offsets[1]:
        message = f"{entry.file}: tensor {entry.stored_name!r}: expected {expected} bytes, found offsets {offsets}"
        raise UnsupportedModelError(message, file=str(entry.file), tensor=entry.stored_name)
    if offsets[1] > data_bytes:
        message = (
            f"{entry.file}: truncated: tensor {entry.stored_name!r} ends at byte {offsets[1]}"
            f" of the data, found {data_bytes} bytes"
        )
        raise UnsupportedModelError(message, file=str(entry.file), tensor=entry.stored_name)
