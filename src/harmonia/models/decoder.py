"""The frame that all families share: embed, layers, final norm, head.

Shapes: T tokens, S positions of which logits are wanted, E features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from harmonia.kernels.matmul import Weight, matmul
from harmonia.layers.embedding import Embedding
from harmonia.layers.forward import Forward
from harmonia.layers.linear import Linear, LinearPart, WeightFormat
from harmonia.layers.norm import RmsNorm
from harmonia.layers.parameter import Parameter, Storage, Vector
from harmonia.layers.rope import Rope
from harmonia.models.config import ModelConfig


class DecoderLayer(Protocol):
    """One layer. Takes the last branch's output and the residual apart, so that adding and normalising is one step."""

    def __call__(self, x_TE: Tensor, residual_TE: Tensor | None, forward: Forward) -> tuple[Tensor, Tensor]:
        """(output not yet added, residual). The first layer gets no residual."""
        ...

    def parameters(self, prefix: str) -> Iterator[Parameter]:
        """Every parameter of the layer."""
        ...

    def linears(self, prefix: str) -> Iterator[LinearPart]:
        """Every projection of the layer that may carry adapters."""
        ...


class AdapterTarget(NamedTuple):
    """A projection that adapters may change, by its PEFT name `model.layers.{layer}.{path}`."""

    layer: int
    path: str
    """Such as `self_attn.q_proj`."""
    linear: Linear
    part: str
    """Name of its part in `linear`."""


class Ropes(NamedTuple):
    """Position tables of layers without and with a window; the same object unless the family has two bases."""

    full: Rope
    local: Rope

    @staticmethod
    def create(config: ModelConfig, fmt: WeightFormat) -> Ropes:
        """Tables for every position up to `config.max_seq_len`."""
        full = Rope.create(config.rope, config.head_dim, config.max_seq_len, fmt.device)
        if config.local_rope is None:
            return Ropes(full, full)
        return Ropes(full, Rope.create(config.local_rope, config.head_dim, config.max_seq_len, fmt.device))


@dataclass(frozen=True, slots=True)
class Decoder:
    """A language model over flat tokens. Callable whole, or piece by piece: embed, layers, finish, logits."""

    config: ModelConfig
    fmt: WeightFormat
    ropes: Ropes
    embedding: Embedding
    layers: tuple[DecoderLayer, ...]
    norm: RmsNorm
    head: Linear | None
    """None when the configuration ties it to the embedding."""

    def __call__(self, token_ids_T: Tensor, forward: Forward) -> Tensor:
        """Final-norm hidden states of every token: hidden_TE."""
        x_TE, residual_TE = self.embed(token_ids_T), None
        for layer in self.layers:
            x_TE, residual_TE = layer(x_TE, residual_TE, forward)
        return self.finish(x_TE, residual_TE)

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """Input of the first layer: x_TE."""
        return self.embedding(token_ids_T)

    def finish(self, x_TE: Tensor, residual_TE: Tensor | None) -> Tensor:
        """Final norm of what the last layer returned: hidden_TE."""
        return self.norm.add(x_TE, residual_TE)[0]

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """fp32 scores of every next token: logits_SV."""
        logits_SV = matmul(hidden_SE, self.head_weight, out_dtype=torch.float32)
        cap = self.config.logit_softcap
        return logits_SV if cap is None else torch.tanh(logits_SV / cap) * cap

    @property
    def head_weight(self) -> Weight:
        """What scores next tokens, [V, E]."""
        return self.embedding.weight if self.head is None else self.head.weight

    def parameters(self) -> Iterator[Parameter]:
        """Every tensor that a checkpoint must provide, by its Hugging Face name."""
        yield from self.embedding.parameters("model.embed_tokens.")
        for index, layer in enumerate(self.layers):
            yield from layer.parameters(f"model.layers.{index}.")
        yield from self.norm.parameters("model.norm.")
        if self.head is not None:
            yield from self.head.parameters("")

    def linears(self) -> Iterator[AdapterTarget]:
        """Every projection that may carry adapters."""
        for index, layer in enumerate(self.layers):
            for path, linear, part in layer.linears(""):
                yield AdapterTarget(index, path, linear, part)

    def storages(self) -> Iterator[tuple[str, Storage]]:
        """(kind, storage) of everything allocated, each once. Kinds: embedding, layers, norm, head, rope."""
        seen: dict[int, Storage] = {}
        for parameter in self.parameters():
            if id(parameter.storage) not in seen:
                seen[id(parameter.storage)] = parameter.storage
                yield _kind(parameter.name), parameter.storage
        for rope in {id(rope): rope for rope in self.ropes}.values():
            yield "rope", Vector(rope.cos_sin_CD)

    def pack(self) -> None:
        """Once everything is filled: bring each weight into the form that computes fastest, one after another."""
        for _, storage in self.storages():
            storage.pack()


def _kind(name: str) -> str:
    path = name.split(".")
    if path[0] == "lm_head":
        return "head"
    return {"embed_tokens": "embedding", "layers": "layers", "norm": "norm"}[path[1]]
