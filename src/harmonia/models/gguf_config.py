"""GGUF metadata to `ModelConfig`, by way of the keys that Hugging Face configurations use."""

from __future__ import annotations

import struct

from gguf.constants import GGMLQuantizationType

from harmonia.errors import UnsupportedModelError
from harmonia.models.config import FAMILIES, ModelConfig
from harmonia.models.fields import Fields
from harmonia.models.gguf import GgufFile
from harmonia.models.hf_config import parse_config

_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma3": "gemma3_text",
}
_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "rope.local.freq_base": "rope_local_base_freq",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attention.sliding_window": "sliding_window",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_ROPE_KEYS = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
# Gemma 3 27B divides by the root of hidden_size / heads where the others take the head size; the file does not say.
_GEMMA3_27B_LAYERS = 62
ROPE_FACTORS = "rope_freqs.weight"


def gguf_model_config(file: GgufFile) -> ModelConfig:
    """Configuration of a GGUF model. Errors: UnsupportedModelError naming architecture, key or tensor."""
    architecture = file.metadata.text("general.architecture")
    if architecture not in _MODEL_TYPES:
        message = f"{file.path}: architecture {architecture!r} is not supported. Supported: {', '.join(FAMILIES)}."
        raise UnsupportedModelError(message, family=architecture, supported=list(FAMILIES))
    parts = file.metadata.integer("split.count", 1, minimum=0)
    if parts > 1:
        raise file.metadata.unsupported("split.count", parts, "one file (llama-gguf-split --merge makes it)")
    values = _translate(file, architecture)
    return parse_config(Fields(values, str(file.path)), Fields({}, str(file.path)))


def _translate(file: GgufFile, architecture: str) -> dict[str, object]:
    metadata = file.metadata
    prefix = f"{architecture}."
    values: dict[str, object] = {"model_type": _MODEL_TYPES[architecture]}
    for key, name in _KEYS.items():
        if metadata.has(prefix + key):
            values[name] = metadata.values[prefix + key]
    if metadata.integer(prefix + "expert_count", 0, minimum=0) and architecture == "llama":
        raise metadata.unsupported(prefix + "expert_count", values["num_experts"], "dense models of this architecture")
    values["vocab_size"] = _vocab_size(file)
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    values["attention_bias"] = "blk.0.attn_output.bias" in file.tensors
    values["norm_topk_prob"] = True
    values["bos_token_id"] = metadata.values.get("tokenizer.ggml.bos_token_id")
    values["eos_token_id"] = _eos(metadata)
    values["rope_scaling"] = _rope_scaling(file, prefix)
    if architecture == "gemma3":
        values["query_pre_attn_scalar"] = _gemma3_scale(Fields(values, str(file.path)))
    return values


def _vocab_size(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        message = f"{file.path}: tensor 'token_embd.weight' is missing"
        raise UnsupportedModelError(message, file=str(file.path), tensor="token_embd.weight")
    return embedding.shape[0]


def _eos(metadata: Fields) -> list[int]:
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    return [
        metadata.integer(f"tokenizer.ggml.{key}", minimum=0) for key in keys if metadata.has(f"tokenizer.ggml.{key}")
    ]


def _gemma3_scale(values: Fields) -> float:
    if values.integer("num_hidden_layers") == _GEMMA3_27B_LAYERS:
        return values.integer("hidden_size") / values.integer("num_attention_heads")
    return values.number("head_dim", 256.0)


def _rope_scaling(file: GgufFile, prefix: str) -> dict[str, object] | None:
    kind = file.metadata.text(f"{prefix}rope.scaling.type", "none")
    if ROPE_FACTORS in file.tensors:
        return {"rope_type": "default", "divisors": _read_divisors(file)}
    if kind == "none":
        return None
    scaling: dict[str, object] = {"rope_type": kind}
    for key, name in _ROPE_KEYS.items():
        full = f"{prefix}rope.scaling.{key}"
        if file.metadata.has(full):
            scaling[name] = file.metadata.values[full]
    return scaling


def _read_divisors(file: GgufFile) -> list[float]:
    """Llama 3's frequency scaling, which converters store as one divisor per frequency."""
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.kind != GGMLQuantizationType.F32 or len(tensor.shape) != 1:
        message = f"{file.path}: tensor {ROPE_FACTORS!r}: expected one F32 dimension, found {tensor.kind.name}"
        raise UnsupportedModelError(message, file=str(file.path), tensor=ROPE_FACTORS)
    with file.path.open("rb") as stream:
        stream.seek(tensor.start)
        return list(struct.unpack(f"<{tensor.shape[0]}f", stream.read(tensor.row_bytes)))
