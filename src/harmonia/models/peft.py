"""Reading adapters in PEFT's folder format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harmonia.errors import InvalidRequestError
from harmonia.layers.adapters import LoraMatrices

_Number = TypeVar("_Number", int, float)
_TENSOR = re.compile(r"^base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")


class PeftConfig(msgspec.Struct, frozen=True):
    """The fields of `adapter_config.json` that decide the mathematics."""

    peft_type: str
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    modules_to_save: list[str] | None = None
    fan_in_fan_out: bool = False

    def scale(self, path: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) with rank stabilisation, by the patterns of this module."""
        alpha = _by_pattern(self.alpha_pattern, path, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_adapter(folder: str, *, max_rank: int) -> dict[str, LoraMatrices]:
    """The adapter's matrices by module path; `InvalidRequestError` names what is broken or unsupported."""
    root = Path(folder)
    config = _read_config(root)
    tensors = _read_tensors(root)
    adapter = {}
    for path in sorted({path for path, _ in tensors}):
        if (path, "A") not in tensors or (path, "B") not in tensors:
            raise InvalidRequestError(f"{root}: {path!r} lacks its lora_A or lora_B")
        a_rK, b_Nr = tensors[path, "A"], tensors[path, "B"]
        rank, expected = a_rK.shape[0], _by_pattern(config.rank_pattern, path, config.r)
        if rank != expected:
            raise InvalidRequestError(f"{root}: {path!r} has rank {rank}, but adapter_config.json says {expected}")
        if rank > max_rank:
            raise InvalidRequestError(
                f"{root}: rank {rank} of {path!r} exceeds max_adapter_rank {max_rank}; raise --max-adapter-rank"
            )
        adapter[path] = LoraMatrices(a_rK, b_Nr, config.scale(path, rank))
    return adapter


def _by_pattern(patterns: Mapping[str, _Number], path: str, default: _Number) -> _Number:
    """PEFT's rule: a pattern is a regular expression that matches the end of the module path."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _read_config(root: Path) -> PeftConfig:
    file = root / "adapter_config.json"
    try:
        config = msgspec.json.decode(file.read_bytes(), type=PeftConfig)
    except OSError as error:
        raise InvalidRequestError(f"{root} is not an adapter in PEFT's format: cannot read {file.name}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{file} is broken: {error}") from error
    unsupported = {
        f"peft_type {config.peft_type!r}": config.peft_type != "LORA",
        "use_dora": config.use_dora,
        f"bias {config.bias!r}": config.bias != "none",
        f"modules_to_save {config.modules_to_save}": bool(config.modules_to_save),
        "fan_in_fan_out": config.fan_in_fan_out,
    }
    for what, present in unsupported.items():
        if present:
            raise InvalidRequestError(f"{file}: {what} is not supported; plain LoRA adapters are")
    return config


def _read_tensors(root: Path) -> dict[tuple[str, str], Tensor]:
    file = root / "adapter_model.safetensors"
    if not file.is_file():
        raise InvalidRequestError(f"{root} has no adapter_model.safetensors; save the adapter with safetensors")
    tensors = {}
    try:
        with safe_open(str(file), framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118  (a reader, not a mapping)
                found = _TENSOR.match(name)
                if found is None:
                    raise InvalidRequestError(f"{file}: tensor {name!r} is not part of a plain LoRA adapter")
                tensors[found["path"], found["side"]] = reader.get_tensor(name)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InvalidRequestError(f"{file} is broken: {error}") from error
    if not tensors:
        raise InvalidRequestError(f"{file} holds no tensor")
    return tensors
