"""`config.json` and `generation_config.json` of a model that is saved in transformers' format. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from harmonia.layers.rope_config import RopeConfig
from harmonia.log import get_logger
from harmonia.models.config import Family, ModelConfig
from harmonia.models.cutting import cut_config
from harmonia.models.fields import read_json, read_optional_json
from harmonia.models.gguf import GgufFile
from harmonia.models.gguf_config import gguf_model_config
from harmonia.models.source import ModelSource

log = get_logger(__name__)

_CLASSES: dict[Family, tuple[str, str]] = {
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("mistral", "MistralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
_FROM_OUTER = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
_NOT_SAVED = ("torch_dtype", "auto_map", "quantization_config")
"""`auto_map` names code beside the source's weights, which these classes do not need; weights are written unrounded."""
_BY_LAYER = (
    *("num_hidden_layers", "layer_types", "max_window_layers", "sliding_window_pattern", "_sliding_window_pattern"),
    *("mlp_only_layers", "decoder_sparse_step"),
)
"""What no longer holds when layers are left out."""
_TOLERANCE = 1e-3


def config_values(source: ModelSource, dtype: str, *, scalar_head: bool) -> dict[str, object]:
    """config.json of the source's text model with weights of this type (`float32`, `bfloat16`).

    A scoring model carries one label, as transformers' classes for sequence classification want it.
    """
    if isinstance(source.files, GgufFile):
        # The source's own configuration may be limited to the lengths of one run.
        stored = gguf_model_config(source.files)
        values = described(stored if source.kept_layers is None else cut_config(stored, source.kept_layers))
    else:
        outer = dict(read_json(source.path / "config.json").values)
        values = _text_part(outer)
        if source.kept_layers is not None:
            values = {key: value for key, value in values.items() if key not in _BY_LAYER}
            values |= _layer_values(source.config)
    _, architecture = _CLASSES[source.config.family]
    values |= {"architectures": [architecture], "dtype": dtype}
    values = {key: value for key, value in values.items() if key not in _NOT_SAVED}
    if scalar_head:
        values |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return values


def generation_values(source: ModelSource) -> dict[str, object]:
    """generation_config.json: the source's, or the ends of generation that its header names."""
    if not isinstance(source.files, GgufFile):
        stored = read_optional_json(source.path / "generation_config.json")
        if stored.values:
            return dict(stored.values)
    config = source.config
    values: dict[str, object] = {}
    if config.bos_token_id is not None:
        values["bos_token_id"] = config.bos_token_id
    if config.eos_token_ids:
        values["eos_token_id"] = list(config.eos_token_ids)
    return values


def described(config: ModelConfig) -> dict[str, object]:
    """A configuration in transformers' words; `parse_config` reads the same back."""
    model_type, _ = _CLASSES[config.family]
    activation = "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else config.activation
    values: dict[str, object] = {
        "model_type": model_type,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "hidden_activation" if config.family == "gemma3" else "hidden_act": activation,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) or None,
        "use_cache": True,
    }
    return values | _attention_values(config) | _rope_values(config) | _moe_values(config)


def _text_part(outer: Mapping[str, object]) -> dict[str, object]:
    """The text model's own configuration, where it is part of one with vision."""
    inner = outer.get("text_config")
    if not isinstance(inner, dict):
        return dict(outer)
    shared = {key: outer[key] for key in _FROM_OUTER if outer.get(key) is not None}
    return {"model_type": "gemma3_text"} | inner | shared


def _attention_values(config: ModelConfig) -> dict[str, object]:
    values: dict[str, object] = {}
    if config.family in ("llama", "qwen3", "qwen3_moe", "gemma3"):
        values["attention_bias"] = config.output_bias
    if config.family == "llama":
        values["mlp_bias"] = config.mlp_bias
    window = max(config.windows)
    kinds = _layer_types(config)
    if config.family == "gemma3":
        values["query_pre_attn_scalar"] = _whole(config.attention_scale**-2)
        values["final_logit_softcapping"] = config.logit_softcap
        values |= {"sliding_window": window or None, "layer_types": kinds}
    elif config.family == "mistral":
        values["sliding_window"] = window or None
    elif window:
        first = config.windows.index(window)
        values |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": first}
        values["layer_types"] = kinds
    return values


def _layer_types(config: ModelConfig) -> list[str]:
    return ["sliding_attention" if size else "full_attention" for size in config.windows]


def _layer_values(config: ModelConfig) -> dict[str, object]:
    """What `_BY_LAYER` is for this configuration, where its family has it."""
    values: dict[str, object] = {"num_hidden_layers": config.num_layers}
    if config.family not in ("llama", "mistral"):
        values["layer_types"] = _layer_types(config)
    if config.moe is not None:
        values |= _plain_layers(config)
    return values


def _rope_values(config: ModelConfig) -> dict[str, object]:
    full = _rope(config.rope, config.head_dim)
    if config.local_rope is None:
        return {"rope_parameters": full}
    local = _rope(config.local_rope, config.head_dim)
    # `rope_theta` and `rope_local_base_freq` are what versions 4 of transformers look for.
    theta = {"rope_theta": config.rope.base, "rope_local_base_freq": config.local_rope.base}
    return theta | {"rope_parameters": {"full_attention": full, "sliding_attention": local}}


def _rope(rope: RopeConfig, head_dim: int) -> dict[str, object]:
    values: dict[str, object] = {"rope_type": rope.kind, "rope_theta": rope.base}
    if rope.divisors:
        return values | _from_divisors(rope, head_dim)
    if rope.kind != "default":
        values["factor"] = rope.factor
    if rope.kind in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = rope.original_max_seq_len
    if rope.kind == "llama3":
        values |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        optional = {
            "attention_factor": rope.attention_factor,
            "mscale": rope.mscale,
            "mscale_all_dim": rope.mscale_all_dim,
        }
        values |= {key: value for key, value in optional.items() if value is not None}
    return values


def _from_divisors(rope: RopeConfig, head_dim: int) -> dict[str, object]:
    """Llama 3's scaling, found again from the divisors that converters to GGUF made of it."""
    waves = [2 * math.pi * rope.base ** (2 * index / head_dim) for index in range(len(rope.divisors))]
    factor = _whole(max(rope.divisors))
    for wave, divisor in zip(waves, rope.divisors, strict=True):
        if 1.0 + _TOLERANCE < divisor < factor - _TOLERANCE:
            share = (1 / divisor - 1 / factor) / (1 - 1 / factor)
            original = round(wave * (1 + 3 * share))
            break
    else:
        # No frequency lies on the ramp: any length between the last that stays and the first that is divided.
        unchanged = [wave for wave, divisor in zip(waves, rope.divisors, strict=True) if divisor <= 1.0 + _TOLERANCE]
        original = math.ceil(4 * max(unchanged, default=1.0))
    made = [_llama3_divisor(wave, factor, original) for wave in waves]
    if any(abs(a / b - 1) > _TOLERANCE for a, b in zip(made, rope.divisors, strict=True)):
        log.warning("the frequency divisors of this GGUF file are not Llama 3's; only Harmonia will read them right")
        return {"divisors": list(rope.divisors)}
    llama3 = {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original}
    return {**llama3, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def _llama3_divisor(wave: float, factor: float, original: int) -> float:
    share = min(1.0, max(0.0, (original / wave - 1.0) / 3.0))
    return 1 / ((1 - share) / factor + share)


def _moe_values(config: ModelConfig) -> dict[str, object]:
    if config.moe is None:
        return {}
    return {
        "num_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.num_experts_per_tok,
        "moe_intermediate_size": config.moe.intermediate_size,
        "norm_topk_prob": config.moe.norm_topk_prob,
        **_plain_layers(config),
    }


def _plain_layers(config: ModelConfig) -> dict[str, object]:
    plain = [layer for layer in range(config.num_layers) if not config.is_moe_layer(layer)]
    return {"mlp_only_layers": plain, "decoder_sparse_step": 1}


def _whole(value: float) -> int | float:
    """A number that rounding left beside a whole one."""
    return round(value) if abs(value - round(value)) < 1e-6 * max(1.0, abs(value)) else value
