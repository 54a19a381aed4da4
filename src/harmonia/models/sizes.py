"""Bytes that a model takes, from its configuration alone, for the plan that is made before anything is loaded.

Items per token are counted with E features, N outputs of the fused projection, R rotated features, F inner features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from harmonia.errors import InvalidRequestError
from harmonia.kernels.weight import PANEL, DenseWeight, has_panels
from harmonia.layers.embedding import Embedding
from harmonia.layers.linear import Linear, WeightFormat
from harmonia.layers.parameter import Storage
from harmonia.models.config import ModelConfig
from harmonia.models.decoder import Decoder
from harmonia.models.families import build_decoder

_FP32_BYTES = 4
_SAMPLING_COPIES = 7
"""fp32 copies of the logits alive at once when rows are sampled with every filter; see kernels/sample.py."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A stored matrix of the decoder, with the names of the parameters that it holds."""

    storage: Linear | Embedding
    names: tuple[str, ...]
    num_out: int
    num_in: int

    def is_narrow(self, exact: Collection[str]) -> bool:
        """Kept as bf16 panels on the CPU, once filled with values of which `exact` lose nothing in bf16."""
        weight = self.storage.weight
        if not isinstance(weight, DenseWeight) or weight.weight_NK.dtype is not torch.float32 or self.num_out % PANEL:
            return False
        packs = isinstance(self.storage, Linear) or self.storage.is_head
        return packs and all(name in exact for name in self.names) and has_panels()


def weight_bytes(config: ModelConfig, fmt: WeightFormat, exact: Collection[str] = ()) -> dict[str, int]:
    """By kind (embedding, layers, norm, head, rope): what `load_decoder` leaves.

    exact: names of parameters whose values are exact in bf16. On a CPU they take half the space of fp32.
    """
    decoder = _empty(config, fmt)
    narrow = {id(matrix.storage) for matrix in _matrices(decoder) if _on_cpu(fmt) and matrix.is_narrow(exact)}
    sizes: dict[str, int] = {}
    for kind, storage in decoder.storages():
        num_bytes = storage.num_bytes // 2 if id(storage) in narrow else storage.num_bytes
        sizes[kind] = sizes.get(kind, 0) + num_bytes
    return sizes


def loading_bytes(config: ModelConfig, fmt: WeightFormat) -> int:
    """Most that is taken while a decoder is filled and packed: everything as it is filled, and one matrix twice."""
    decoder = _empty(config, fmt)
    whole = sum(storage.num_bytes for _, storage in decoder.storages())
    packs = _on_cpu(fmt) and fmt.dtype is torch.float32 and has_panels()
    dense = (matrix.storage for matrix in _matrices(decoder) if isinstance(matrix.storage.weight, DenseWeight))
    return whole + (max((storage.num_bytes for storage in dense), default=0) if packs else 0)


def kv_bytes_per_token(config: ModelConfig, fmt: WeightFormat) -> int:
    """Keys and values of one token in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * fmt.dtype.itemsize


def lora_bytes_per_rank(config: ModelConfig, fmt: WeightFormat) -> int:
    """One rank row of every projection that may carry adapters: what the bank takes, whatever an adapter targets."""
    return lora_parameters(config) * fmt.dtype.itemsize


@lru_cache(maxsize=64)
def lora_parameters(config: ModelConfig, targets: tuple[str, ...] = ()) -> int:
    """Numbers of one rank of an adapter with these targets, by last names such as `q_proj`; empty: every projection.

    Errors: InvalidRequestError for a target that the model does not have.
    """
    found = [target for target in _empty(config).linears() if not targets or target.part in targets]
    unknown = sorted(set(targets) - {target.part for target in found})
    if unknown:
        known = sorted({target.part for target in _empty(config).linears()})
        raise InvalidRequestError(
            f"this model has no projection {unknown[0]!r}; it has {', '.join(known)}", field="targets"
        )
    return sum(target.linear.num_in + target.linear.part(target.part).size for target in found)


@lru_cache(maxsize=64)
def num_parameters(config: ModelConfig, *, with_head: bool = True) -> int:
    """Numbers that full training moves. A scoring model leaves out a language head that is not its embedding."""
    decoder = _empty(config)
    storages = (storage for kind, storage in decoder.storages() if kind != "rope" and (with_head or kind != "head"))
    return sum(storage.num_bytes for storage in storages) // _FP32_BYTES


def largest_matrix(config: ModelConfig) -> int:
    """Numbers of the largest matrix of a layer, whose gradient exists once by itself."""
    matrices = (matrix for matrix in _matrices(_empty(config)) if ".layers." in matrix.names[0])
    return max(matrix.num_out * matrix.num_in for matrix in matrices)


def activation_bytes(config: ModelConfig, fmt: WeightFormat, num_tokens: int) -> int:
    """Most that one forward pass over so many tokens holds at a time, without the scratch of attention kernels."""
    in_attention = _attention_items(config, fmt)
    in_mlp = 3 * config.hidden_size + 4 * config.intermediate_size
    if fmt.fp8:  # the inner features in e4m3 on a GPU; elsewhere, where nothing multiplies that, three times in fp32
        in_mlp += config.intermediate_size * (3 if _on_cpu(fmt) else 1)
    peak = max(in_attention, in_mlp, _moe_items(config, fmt), _norm_items(config, fmt))
    return num_tokens * peak * fmt.dtype.itemsize


def logits_bytes(config: ModelConfig, num_rows: int) -> int:
    """Logits of so many rows and what sampling them takes, in fp32."""
    return num_rows * config.vocab_size * _FP32_BYTES * _SAMPLING_COPIES


def _attention_items(config: ModelConfig, fmt: WeightFormat) -> int:
    """Residual, normalised input, fused projection; rotation in fp32 with its halves; mixed heads, output."""
    rotated = (config.num_heads + config.num_kv_heads) * config.head_dim
    fused = rotated + config.num_kv_heads * config.head_dim
    fp32 = _FP32_BYTES // fmt.dtype.itemsize
    return 3 * config.hidden_size + fused + rotated + 2 * rotated * fp32 + config.num_heads * config.head_dim


def _norm_items(config: ModelConfig, fmt: WeightFormat) -> int:
    """Input, sum, output, and the fp32 steps between."""
    return config.hidden_size * (3 + 2 * _FP32_BYTES // fmt.dtype.itemsize)


def _moe_items(config: ModelConfig, fmt: WeightFormat) -> int:
    """Residual, input, output; a row per chosen expert; the worst case of one expert taking every token; routing."""
    if config.moe is None:
        return 0
    chosen = config.moe.num_experts_per_tok
    routing = (config.moe.num_experts * 2 + chosen * 12) * _FP32_BYTES // fmt.dtype.itemsize
    expert = 4 * config.moe.intermediate_size + 2 * config.hidden_size
    return (3 + chosen) * config.hidden_size + expert + routing


def _empty(config: ModelConfig, fmt: WeightFormat | None = None) -> Decoder:
    """The decoder without its memory; in fp32 unless a format is given."""
    meta = torch.device("meta")
    return build_decoder(config, WeightFormat(torch.float32, meta) if fmt is None else replace(fmt, device=meta))


def _matrices(decoder: Decoder) -> Iterator[Matrix]:
    """Every matrix once."""
    names: dict[int, list[str]] = {}
    storages: dict[int, Storage] = {}
    for parameter in decoder.parameters():
        names.setdefault(id(parameter.storage), []).append(parameter.name)
        storages[id(parameter.storage)] = parameter.storage
    for key, storage in storages.items():
        if isinstance(storage, Linear):
            num_out = sum(part.size for part in storage.parts)
            yield Matrix(storage, tuple(names[key]), num_out, storage.num_in)
        elif isinstance(storage, Embedding):
            yield Matrix(storage, tuple(names[key]), storage.vocab_size, storage.hidden_size)


def _on_cpu(fmt: WeightFormat) -> bool:
    return fmt.device.type == "cpu"
