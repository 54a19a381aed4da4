"""What a decoder is made of, whatever file said so. Plain data, importable without torch."""

from __future__ import annotations

from typing import Literal

import msgspec

from harmonia.layers.rope_config import RopeConfig

Family = Literal["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma3"]
FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma3")


class MoeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A mixture of experts in place of some feed-forward layers."""

    num_experts: int
    """Experts of one layer."""
    num_experts_per_tok: int
    """Experts that each token passes through."""
    intermediate_size: int
    """Inner features of one expert."""
    norm_topk_prob: bool
    """Scale the weights of a token's experts to sum to one."""
    layers: tuple[int, ...]
    """Indices of the layers that are mixtures; the others are plain."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and choices of one decoder."""

    family: Family
    """Which file of this package defines it."""
    num_layers: int
    """Decoder layers."""
    hidden_size: int
    """Features of the residual stream."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key/value heads; each serves num_heads / num_kv_heads query heads."""
    head_dim: int
    """Features of one head."""
    intermediate_size: int
    """Inner features of a feed-forward layer."""
    vocab_size: int
    """Rows of the embedding and of the head."""
    max_seq_len: int
    """Longest sequence that the positions are made for."""
    norm_eps: float
    """Added to the mean square in norms."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """Of the gate in feed-forward layers."""
    rope: RopeConfig = RopeConfig()
    """Positions; of layers without a window where `local_rope` is given."""
    local_rope: RopeConfig | None = None
    """Positions of layers with a window; None: the same as the others'."""
    windows: tuple[int, ...]
    """By layer: tokens that a token sees, itself included; 0 sees all."""
    tie_embeddings: bool = False
    """The head is the embedding."""
    qkv_bias: bool = False
    """Query, key and value projections have a bias."""
    output_bias: bool = False
    """The attention's output projection has a bias."""
    mlp_bias: bool = False
    """Feed-forward projections have a bias."""
    qk_norm: bool = False
    """Queries and keys are normalised per head."""
    attention_scale: float
    """Multiplies query-key products."""
    embedding_scale: float = 1.0
    """Multiplies embeddings."""
    logit_softcap: float | None = None
    """Bounds logits to +-this by tanh."""
    fp8_side: int | None = None
    """If files hold the layers' matrices in fp8: side of the squares that share a scale, or 0 where an output feature
    has one; None if they do not."""
    moe: MoeConfig | None = None
    """Mixture of experts, if any."""
    bos_token_id: int | None = None
    """Begin of text, as the model's configuration says."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a generation, of config.json and generation_config.json together."""

    def is_moe_layer(self, layer: int) -> bool:
        """Whether this layer is a mixture of experts."""
        return self.moe is not None and layer in self.moe.layers
