"""Tiny random models of every family, made by transformers."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config
from transformers.models.qwen3_moe import Qwen3MoeConfig

from harmonia.layers.linear import WeightFormat
from harmonia.models import load_decoder, open_model
from harmonia.models.decoder import Decoder

FP32 = WeightFormat(torch.float32, torch.device("cpu"))
VOCAB = 96
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 = {**LLAMA3, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama-tied-bias": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-linear": lambda: LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "llama-llama3": lambda: LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral-window": lambda: MistralConfig(**SIZES, sliding_window=7),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2-window": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen2-yarn": lambda: Qwen2Config(**SIZES, rope_parameters=YARN),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "qwen3-yarn-mscale": lambda: Qwen3Config(
        **SIZES, rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 8.0, "truncate": False}
    ),
    "qwen3-yarn-factor": lambda: Qwen3Config(**SIZES, rope_parameters={**YARN, "attention_factor": 1.3}),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES, **MOE, norm_topk_prob=True),
    "qwen3_moe-mixed": lambda: Qwen3MoeConfig(**SIZES, **MOE, mlp_only_layers=[1]),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, sliding_window=5, layer_types=LAYER_TYPES, query_pre_attn_scalar=24),
    "gemma3-linear-softcap": lambda: Gemma3TextConfig(
        **SIZES, sliding_window=9, layer_types=LAYER_TYPES, rope_parameters=GEMMA_ROPES, final_logit_softcapping=5.0
    ),
}


def reference_model(name: str, seed: int = 0, **settings: int) -> PreTrainedModel:
    """A random model of this configuration, or one with other settings, every parameter away from its initial value."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    config.update(settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def load(folder: Path, fmt: WeightFormat = FP32) -> Decoder:
    """Our decoder of a folder."""
    return load_decoder(open_model(folder), fmt)


def np_zeros(rows: int, columns: int) -> np.ndarray:
    """A tensor for files whose weights nobody reads."""
    return np.zeros((rows, columns), dtype=np.float32)
