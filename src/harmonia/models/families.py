"""Registry: which file defines the layers of which family, and the building of a whole decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from harmonia.layers.embedding import Embedding
from harmonia.layers.linear import Linear, WeightFormat
from harmonia.layers.norm import RmsNorm
from harmonia.models import gemma3, llama, qwen2, qwen3, qwen3_moe
from harmonia.models.config import Family, ModelConfig
from harmonia.models.decoder import Decoder, DecoderLayer, Ropes


class LayerBuilder(Protocol):
    """What a family's file provides."""

    def __call__(self, config: ModelConfig, layer: int, fmt: WeightFormat, ropes: Ropes) -> DecoderLayer:
        """Unfilled layer of this index."""
        ...


_BUILDERS: dict[Family, LayerBuilder] = {
    "llama": llama.build_layer,
    "mistral": llama.build_layer,
    "qwen2": qwen2.build_layer,
    "qwen3": qwen3.build_layer,
    "qwen3_moe": qwen3_moe.build_layer,
    "gemma3": gemma3.build_layer,
}


def build_decoder(config: ModelConfig, fmt: WeightFormat) -> Decoder:
    """A decoder with all its storage allocated and nothing filled but the position tables.

    On the `meta` device nothing is allocated; that is how sizes are counted.
    """
    ropes = Ropes.create(config, fmt)
    # In fp8 what tokens begin with and end in keeps its precision.
    outer = fmt.unrounded if fmt.fp8 else fmt
    fmt = replace(fmt, fp8_side=config.fp8_side or 0) if fmt.fp8 else fmt
    embedding = Embedding.create(
        config.vocab_size, config.hidden_size, outer, scale=config.embedding_scale, is_head=config.tie_embeddings
    )
    build_layer = _BUILDERS[config.family]
    layers = tuple(build_layer(config, layer, fmt, ropes) for layer in range(config.num_layers))
    offset = gemma3.NORM_OFFSET if config.family == "gemma3" else 0.0
    norm = RmsNorm.create(config.hidden_size, config.norm_eps, fmt, offset=offset)
    head = None if config.tie_embeddings else Linear.create(config.hidden_size, {"lm_head": config.vocab_size}, outer)
    return Decoder(config, fmt, ropes, embedding, layers, norm, head)
