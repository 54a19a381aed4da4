"""Adapters in PEFT's folder format: `adapter_config.json` and `adapter_model.safetensors`.

Shapes: K input features, N output features, r rank, E features.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harmonia.errors import InvalidRequestError
from harmonia.layers.adapters import LoraMatrices
from harmonia.models.adaptive_info import AdaptiveInfo, Geometry, read_info, write_info
from harmonia.models.decoder import Decoder
from harmonia.models.source import ModelSource
from harmonia.models.tensor_file import tensor_spec, write_tensor_file
from harmonia.models.tokenizer_export import write_tokenizer

_Number = TypeVar("_Number", int, float)
_PREFIX = "base_model.model."
_HEAD = "score"
"""The scalar head's module in transformers' classes for sequence classification."""
_HEADS = {_HEAD, "classifier"}
"""What PEFT lists in `modules_to_save` for such classes."""
_TENSOR = re.compile(r"^base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")


class PeftConfig(msgspec.Struct, frozen=True):
    """The fields of `adapter_config.json` that decide the mathematics."""

    peft_type: str
    base_model_name_or_path: str | None = None
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


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """All that an adapter's folder holds, but for its optimizer's state."""

    matrices: dict[str, LoraMatrices]
    """By module path, such as `model.layers.0.self_attn.q_proj`."""
    scalar_head: Tensor | None
    """head_1E of a scoring model, else None."""
    base_name: str | None
    """Path, registry URI or name of the model that it changes, as the folder says."""
    info: AdaptiveInfo | None
    """What Harmonia says of it; None if another program wrote it."""


def language_matrices(folder: str | Path, saved: SavedAdapter) -> dict[str, LoraMatrices]:
    """The matrices of a language model's adapter; `InvalidRequestError` for one that scores."""
    if saved.scalar_head is not None:
        raise InvalidRequestError(f"{folder} holds a scalar head: it scores; spawn it with into_scoring_model()")
    return saved.matrices


def read_saved_adapter(folder: str | Path, *, max_rank: int) -> SavedAdapter:
    """The whole adapter; `InvalidRequestError` names what is broken or unsupported."""
    root = Path(folder)
    config = _read_config(root)
    tensors, head = _read_tensors(root)
    if head is None and _HEAD in (config.modules_to_save or ()):
        raise InvalidRequestError(
            f"{root}: adapter_config.json lists {_HEAD!r} in modules_to_save, its tensor is missing"
        )
    adapter = {}
    for path in sorted({path for path, _ in tensors}):
        if (path, "A") not in tensors or (path, "B") not in tensors:
            raise InvalidRequestError(f"{root}: {path!r} lacks its lora_A or lora_B")
        a_rK, b_Nr = tensors[path, "A"], tensors[path, "B"]
        if a_rK.dim() != 2 or b_Nr.dim() != 2 or a_rK.shape[0] == 0:
            shapes = f"{list(a_rK.shape)} and {list(b_Nr.shape)}"
            raise InvalidRequestError(
                f"{root}: lora_A and lora_B of {path!r} have shapes {shapes}: they are no matrices"
            )
        rank, expected = a_rK.shape[0], _by_pattern(config.rank_pattern, path, config.r)
        if rank != expected:
            raise InvalidRequestError(f"{root}: {path!r} has rank {rank}, but adapter_config.json says {expected}")
        if rank > max_rank:
            raise InvalidRequestError(
                f"{root}: rank {rank} of {path!r} exceeds max_adapter_rank {max_rank}; raise --max-adapter-rank"
            )
        adapter[path] = LoraMatrices(a_rK, b_Nr, config.scale(path, rank))
    return SavedAdapter(adapter, head, config.base_model_name_or_path, read_info(root))


def write_adapter(
    folder: Path,
    matrices: Mapping[str, LoraMatrices],
    base_model: str,
    scalar_head: Tensor | None = None,
    *,
    source: ModelSource | None = None,
    info: AdaptiveInfo | None = None,
) -> None:
    """Write an adapter that PEFT and `read_saved_adapter` open.

    base_model: path or registry URI of what it changes. source: that model, for its tokenizer and geometry.
    scalar_head: head_E or head_1E, kept as PEFT keeps a module of `modules_to_save`.
    info: what else to note; base and kind are filled in.
    PEFT takes every `gate_proj` of a Qwen3-MoE for one of its experts, so it cannot open adapters that change the plain
    feed-forward layers which some of those models have among the mixtures; `read_saved_adapter` can.
    Errors: OSError.
    """
    tensors = {}
    for path, lora in matrices.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = tensor_spec(lora.a_rK)
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = tensor_spec(lora.b_Nr)
    if scalar_head is not None:
        tensors[f"{_PREFIX}{_HEAD}.weight"] = tensor_spec(scalar_head.reshape(1, -1))
    write_tensor_file(folder / "adapter_model.safetensors", tensors)
    config = _config_values(matrices, base_model, has_head=scalar_head is not None)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    noted = msgspec.structs.replace(
        info or AdaptiveInfo(kind="adapter"), kind="adapter", base=base_model, scalar_head=scalar_head is not None
    )
    if source is not None:
        noted = msgspec.structs.replace(noted, base_geometry=Geometry.of(source.config))
        write_tokenizer(folder, source)
    write_info(folder, noted)


def require_base(folder: str | Path, saved: SavedAdapter, decoder: Decoder, model: str) -> None:
    """Refuse an adapter of another base: InvalidRequestError naming both and the first thing that does not fit.

    model: what users call the loaded model.
    """
    problem = _misfit(saved, decoder)
    if problem is None:
        return
    info = saved.info
    base = (info.base if info is not None else None) or saved.base_name or "a model that it does not name"
    geometry = f" ({info.base_geometry})" if info is not None and info.base_geometry is not None else ""
    raise InvalidRequestError(
        f"{folder} is an adapter of {base}{geometry} and does not fit {model} ({Geometry.of(decoder.config)}): "
        f"{problem}; spawn its own base",
        adapter_base=base,
        model=model,
    )


def _misfit(saved: SavedAdapter, decoder: Decoder) -> str | None:
    """The first thing of an adapter that a model has no place for."""
    found = Geometry.of(decoder.config)
    stated = saved.info.base_geometry if saved.info is not None else None
    targets = {f"model.layers.{target.layer}.{target.path}": target for target in decoder.linears()}
    for path, lora in saved.matrices.items():
        target = targets.get(path)
        if target is None:
            return f"it changes {path!r}, which this model does not have"
        sizes = (target.linear.num_in, target.linear.part(target.part).size)
        changed = (lora.a_rK.shape[1], lora.b_Nr.shape[0])
        if changed != sizes:
            here = f"here from {sizes[0]} to {sizes[1]} are expected"
            return f"it changes {path!r} from {changed[0]} to {changed[1]} features, {here}"
    head = saved.scalar_head
    if head is not None and head.shape[1] != found.hidden_size:
        return f"its scalar head reads {head.shape[1]} features, this model has {found.hidden_size}"
    return None if stated is None or stated.allows(found) else "the architectures differ"


def _config_values(matrices: Mapping[str, LoraMatrices], base_model: str, *, has_head: bool) -> dict[str, object]:
    """`adapter_config.json`. The most frequent rank and alpha stand alone, the others in the patterns."""
    ranks = {path: int(lora.a_rK.shape[0]) for path, lora in matrices.items()}
    alphas = {path: _alpha(lora) for path, lora in matrices.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] if values else 8 for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if has_head else "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        # Whole paths: a bare `gate_proj` would also name modules inside experts.
        "target_modules": sorted(matrices),
        "modules_to_save": [_HEAD] if has_head else None,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def _alpha(lora: LoraMatrices) -> float:
    """scale * rank, as the whole number that it was before the division."""
    alpha = lora.scale * lora.a_rK.shape[0]
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-9) else alpha


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
        f"modules_to_save {config.modules_to_save}": not _HEADS.issuperset(config.modules_to_save or ()),
        "fan_in_fan_out": config.fan_in_fan_out,
    }
    for what, present in unsupported.items():
        if present:
            raise InvalidRequestError(f"{file}: {what} is not supported; plain LoRA adapters and scalar heads are")
    for pattern in (*config.rank_pattern, *config.alpha_pattern):
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidRequestError(f"{file}: {pattern!r} is no regular expression: {error}") from error
    return config


def _read_tensors(root: Path) -> tuple[dict[tuple[str, str], Tensor], Tensor | None]:
    """({(path, side): matrix}, scalar head if any)."""
    file = root / "adapter_model.safetensors"
    if not file.is_file():
        raise InvalidRequestError(f"{root} has no adapter_model.safetensors; save the adapter with safetensors")
    tensors: dict[tuple[str, str], Tensor] = {}
    head = None
    try:
        with safe_open(str(file), framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118  (a reader, not a mapping)
                found = _TENSOR.match(name)
                if found is not None:
                    tensors[found["path"], found["side"]] = reader.get_tensor(name)
                elif name == f"{_PREFIX}{_HEAD}.weight":
                    head = _scalar_head(file, reader.get_tensor(name))
                else:
                    raise InvalidRequestError(f"{file}: tensor {name!r} is not part of a plain LoRA adapter")
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InvalidRequestError(f"{file} is broken: {error}") from error
    if not tensors:
        raise InvalidRequestError(f"{file} holds no tensor")
    return tensors, head


def _scalar_head(file: Path, head: Tensor) -> Tensor:
    if head.dim() != 2 or head.shape[0] != 1:
        raise InvalidRequestError(
            f"{file}: its head has shape {list(head.shape)}; heads of one score, [1, E], are supported"
        )
    return head
