"""Hugging Face `config.json`, of transformers 4 and 5, to `ModelConfig`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from harmonia.errors import UnsupportedModelError
from harmonia.layers.rope_config import ROPE_KINDS, RopeConfig
from harmonia.models.config import FAMILIES, Family, ModelConfig, MoeConfig
from harmonia.models.fields import Fields, read_json, read_optional_json
from harmonia.models.fp8_config import fp8_side


class _Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What a family's configurations leave unsaid: the defaults of its class in transformers."""

    family: Family
    defaults: dict[str, object]
    qkv_bias: bool = False
    qk_norm: bool = False


_COMMON: dict[str, object] = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
_GEMMA3: dict[str, object] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_LLAMA: dict[str, object] = _COMMON | {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
_MISTRAL: dict[str, object] = _LLAMA | {
    "max_position_embeddings": 131_072,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}
_QWEN: dict[str, object] = _COMMON | {
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_QWEN3: dict[str, object] = _QWEN | {"head_dim": 128}
_QWEN3_MOE: dict[str, object] = _QWEN | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}

_TRAITS = {
    "llama": _Traits(family="llama", defaults=_LLAMA),
    "mistral": _Traits(family="mistral", defaults=_MISTRAL),
    "qwen2": _Traits(family="qwen2", defaults=_QWEN, qkv_bias=True),
    "qwen3": _Traits(family="qwen3", defaults=_QWEN3, qk_norm=True),
    "qwen3_moe": _Traits(family="qwen3_moe", defaults=_QWEN3_MOE, qk_norm=True),
    "gemma3_text": _Traits(family="gemma3", defaults=_GEMMA3, qk_norm=True),
}
_MAX_LAYERS = 1000
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a Hugging Face folder. Errors: UnsupportedModelError naming file and key."""
    fields = read_json(folder / "config.json")
    generation = read_optional_json(folder / "generation_config.json")
    return parse_config(fields, generation)


def parse_config(fields: Fields, generation: Fields) -> ModelConfig:
    """Config and generation config to one `ModelConfig`; unknown families and features are refused by name."""
    outer = fields
    if fields.has("text_config"):
        fields = fields.section("text_config")
    traits = _traits(fields, outer)
    fields = _with_defaults(fields, traits.defaults)
    _refuse_unsupported(fields)
    heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    head_dim = fields.integer("head_dim", hidden_size // heads)
    num_layers = fields.integer("num_hidden_layers")
    if num_layers > _MAX_LAYERS:
        raise fields.unsupported("num_hidden_layers", num_layers, f"up to {_MAX_LAYERS}")
    bias = fields.flag("attention_bias", False)
    rope, local_rope = _ropes(fields, traits.family)
    config = ModelConfig(
        family=traits.family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        max_seq_len=_max_seq_len(fields, rope),
        norm_eps=fields.number("rms_norm_eps"),
        activation=_activation(fields),
        rope=rope,
        local_rope=local_rope,
        windows=_windows(fields, traits.family, num_layers),
        tie_embeddings=_tied(fields, outer),
        qkv_bias=bias or traits.qkv_bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        qk_norm=traits.qk_norm,
        attention_scale=fields.number("query_pre_attn_scalar", float(head_dim)) ** -0.5,
        embedding_scale=hidden_size**0.5 if traits.family == "gemma3" else 1.0,
        logit_softcap=fields.number("final_logit_softcapping") if fields.has("final_logit_softcapping") else None,
        fp8_side=fp8_side(outer if outer.has("quantization_config") else fields),
        moe=_moe(fields, num_layers) if traits.family == "qwen3_moe" else None,
        bos_token_id=next(iter(fields.integers("bos_token_id")), None),
        eos_token_ids=_eos(fields, outer, generation),
    )
    _check(config, fields)
    return config


def _traits(fields: Fields, outer: Fields) -> _Traits:
    kind = fields.text("model_type", "gemma3_text" if outer.values.get("model_type") == "gemma3" else "")
    if kind not in _TRAITS:
        names = outer.strings("architectures")
        named = f" (architectures {', '.join(names)})" if names else ""
        message = f"{outer.origin}: model family {kind!r}{named} is not supported. Supported: {', '.join(FAMILIES)}."
        raise UnsupportedModelError(message, family=kind, supported=list(FAMILIES))
    return _TRAITS[kind]


def _with_defaults(fields: Fields, defaults: dict[str, object]) -> Fields:
    given = {key: value for key, value in fields.values.items() if value is not None}
    # An explicit null window means none, unlike every other null, which means the default.
    if "sliding_window" in fields.values:
        given["sliding_window"] = fields.values["sliding_window"]
    return Fields(defaults | given, fields.origin)


def _refuse_unsupported(fields: Fields) -> None:
    refused: dict[str, Callable[[object], bool]] = {
        "attn_logit_softcapping": lambda value: value is None,
        "use_bidirectional_attention": lambda value: not value,
        "partial_rotary_factor": lambda value: value in (None, 1, 1.0),
    }
    for key, is_fine in refused.items():
        if not is_fine(fields.values.get(key)):
            raise fields.unsupported(key, fields.values[key], "none")


def _activation(fields: Fields) -> Literal["silu", "gelu_tanh"]:
    key = "hidden_activation" if fields.has("hidden_activation") else "hidden_act"
    name = fields.text(key, "silu")
    if name not in _ACTIVATIONS:
        raise fields.unsupported(key, name, ", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def _tied(fields: Fields, outer: Fields) -> bool:
    origin = outer if outer.has("tie_word_embeddings") else fields
    return origin.flag("tie_word_embeddings")


def _ropes(fields: Fields, family: Family) -> tuple[RopeConfig, RopeConfig | None]:
    """(global, local) positions, from `rope_parameters` or from the older keys."""
    new = fields.section("rope_parameters")
    base = fields.number("rope_theta")
    if family == "gemma3":
        full = new.section("full_attention") if new.has("full_attention") else fields.section("rope_scaling")
        local_base = fields.number("rope_local_base_freq")
        local = new.section("sliding_attention")
        return _rope(full, base, fields), _rope(local, local_base, fields)
    scaling = fields.section("rope_scaling") if fields.has("rope_scaling") else new
    return _rope(scaling, scaling.number("rope_theta", base), fields), None


def _rope(scaling: Fields, base: float, fields: Fields) -> RopeConfig:
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    known = next((candidate for candidate in ROPE_KINDS if candidate == kind), None)
    if known is None:
        raise scaling.unsupported("rope_type", kind, ", ".join(ROPE_KINDS))
    if scaling.number("partial_rotary_factor", 1.0) != 1.0:
        raise scaling.unsupported("partial_rotary_factor", scaling.number("partial_rotary_factor"), "1")
    base = scaling.number("rope_theta", base)
    if known == "default":
        return RopeConfig(base=base, divisors=scaling.numbers("divisors"))
    original = fields.integer("original_max_position_embeddings", fields.integer("max_position_embeddings"))
    is_llama3 = known == "llama3"
    return RopeConfig(
        base=base,
        kind=known,
        factor=scaling.number("factor"),
        original_max_seq_len=scaling.integer("original_max_position_embeddings", original),
        low_freq_factor=scaling.number("low_freq_factor", None if is_llama3 else 1.0),
        high_freq_factor=scaling.number("high_freq_factor", None if is_llama3 else 4.0),
        attention_factor=_optional(scaling, "attention_factor"),
        beta_fast=scaling.number("beta_fast", 32.0) or 32.0,
        beta_slow=scaling.number("beta_slow", 1.0) or 1.0,
        mscale=_optional(scaling, "mscale"),
        mscale_all_dim=_optional(scaling, "mscale_all_dim"),
        truncate=scaling.flag("truncate", True),
    )


def _optional(fields: Fields, key: str) -> float | None:
    return fields.number(key) if fields.has(key) else None


def _max_seq_len(fields: Fields, rope: RopeConfig) -> int:
    length = fields.integer("max_position_embeddings")
    # Qwen's published way to switch YaRN on leaves max_position_embeddings at the unscaled length.
    return max(length, int(rope.original_max_seq_len * rope.factor)) if rope.kind == "yarn" else length


def _windows(fields: Fields, family: Family, num_layers: int) -> tuple[int, ...]:
    """By layer: the window, or 0."""
    switched_off = family.startswith("qwen") and not fields.flag("use_sliding_window", False)
    if family == "llama" or switched_off or not fields.has("sliding_window"):
        return (0,) * num_layers
    window = fields.integer("sliding_window")
    kinds = fields.strings("layer_types")
    if kinds and family != "mistral":
        if len(kinds) != num_layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
            raise fields.unsupported("layer_types", kinds, f"{num_layers} of sliding_attention, full_attention")
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if family == "gemma3":
        pattern = fields.integer("sliding_window_pattern")
        return tuple(window if (layer + 1) % pattern else 0 for layer in range(num_layers))
    first = fields.integer("max_window_layers", minimum=0) if family in ("qwen2", "qwen3") else 0
    return tuple(window if layer >= first else 0 for layer in range(num_layers))


def _moe(fields: Fields, num_layers: int) -> MoeConfig:
    step = fields.integer("decoder_sparse_step", 1)
    plain = fields.integers("mlp_only_layers")
    count_key = "num_experts" if "num_local_experts" not in fields.values else "num_local_experts"
    moe = MoeConfig(
        num_experts=fields.integer(count_key),
        num_experts_per_tok=fields.integer("num_experts_per_tok"),
        intermediate_size=fields.integer("moe_intermediate_size"),
        norm_topk_prob=fields.flag("norm_topk_prob", False),
        layers=tuple(layer for layer in range(num_layers) if layer not in plain and (layer + 1) % step == 0),
    )
    if moe.num_experts_per_tok > moe.num_experts:
        raise fields.unsupported("num_experts_per_tok", moe.num_experts_per_tok, f"at most {moe.num_experts}")
    return moe


def _eos(fields: Fields, outer: Fields, generation: Fields) -> tuple[int, ...]:
    ids = (*generation.integers("eos_token_id"), *outer.integers("eos_token_id"), *fields.integers("eos_token_id"))
    return tuple(dict.fromkeys(ids))


def _check(config: ModelConfig, fields: Fields) -> None:
    if config.num_heads % config.num_kv_heads:
        raise fields.unsupported("num_key_value_heads", config.num_kv_heads, f"divisors of {config.num_heads}")
    if config.head_dim % 2:
        raise fields.unsupported("head_dim", config.head_dim, "even numbers")
