"""GGUF files of tiny models, laid out as llama.cpp's converters do."""

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel

from harmonia.models.token_bytes import byte_alphabet

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
BYTE_TOKENS = sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "Ġ Ġ"]
BYTE_LEVEL = ["<|end|>", "<|user|>", *BYTE_TOKENS, *(merge.replace(" ", "") for merge in MERGES), "<tool>"]


def write_model(path: Path, model: PreTrainedModel, divisors: np.ndarray | None = None) -> None:
    """The whole model in F32, with a byte-level tokenizer."""
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    add_sizes(writer, config)
    add_byte_level_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH(gguf_key(architecture)), config.num_hidden_layers)
    for name, tensor in gguf_tensors(model).items():
        stem, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", tensor.numpy())
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    finish(writer)


def gguf_key(architecture: str) -> int:
    """The library's number of an architecture."""
    return next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def add_sizes(writer: gguf.GGUFWriter, config) -> None:
    """Metadata of the decoder."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "qwen3_moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def add_byte_level_tokenizer(writer: gguf.GGUFWriter, pre: str = "smollm") -> None:
    """A vocabulary of all bytes, a few merges, two control tokens and one defined by the user."""
    kinds = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(BYTE_LEVEL) - 3)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(BYTE_LEVEL)
    writer.add_token_types([*kinds, gguf.TokenType.USER_DEFINED])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)


def gguf_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights by Hugging Face name, changed as the converters change them."""
    config = model.config
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    for name in list(tensors):
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            tensors[name] = neighbours_paired(tensors[name], heads)
        if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
            tensors[name] = tensors[name] + 1
        if name.endswith("experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            gate, up = tensors.pop(name).chunk(2, dim=1)
            tensors |= {f"{prefix}gate_proj.weight": gate.contiguous(), f"{prefix}up_proj.weight": up.contiguous()}
        if name.endswith("experts.down_proj"):
            tensors[f"{name}.weight"] = tensors.pop(name)
    return tensors


def neighbours_paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of rows."""
    halves = weight.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
