"""How much a micro-batch holds, found by running one layer of each kind without data.

On torch's `meta` device tensors have shapes and no memory: what autograd keeps there is what it keeps in earnest,
whichever kernels run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from harmonia.kernels.head import head_rows
from harmonia.kernels.lora import LoraSegment
from harmonia.layers.adapters import AdapterBank, BankTarget
from harmonia.layers.embedding import Embedding
from harmonia.layers.forward import Forward, PackedAttention
from harmonia.layers.linear import Linear, WeightFormat
from harmonia.layers.parameter import Vector
from harmonia.models import ModelConfig
from harmonia.models.decoder import Decoder
from harmonia.models.families import build_decoder
from harmonia.models.sizes import largest_matrix

_TRACED_TOKENS = 256
_SCRATCH_BYTES = 16 << 20
"""Parts of weights that products unpack at a time, and scratch of attention."""
_HEAD_PART_BYTES = 64 << 20
"""Largest part of the gradient of a trained head that is computed at once; see kernels/matmul_grad.py."""


class Trained(NamedTuple):
    """What gradients go to."""

    full: bool = False
    """Every weight of the backbone."""
    targets: tuple[str, ...] | None = None
    """Last names of the projections with an adapter in training; empty: all; None: no adapter."""
    language: bool = True
    """Some loss reads log-probabilities; False where all heads are scalar."""


class Footprint(NamedTuple):
    """Bytes of a micro-batch."""

    saved: tuple[int, ...]
    """By layer, what it keeps for its backward."""
    inputs: tuple[int, ...]
    """By layer, what it is computed anew from."""
    layer: int
    """Most that one layer's backward takes beside what was saved."""
    head: int
    """Most that one chunk of the head takes, hidden states included."""

    def resident(self, num_kept: int) -> int:
        """What lives from forward to backward when the last `num_kept` layers are kept."""
        recomputed = len(self.saved) - num_kept
        return sum(self.inputs[:recomputed]) + sum(self.saved[recomputed:])

    def slice(self, num_kept: int) -> int:
        """Most that one slice takes beside that. Layers run again once those that were kept are done."""
        recomputed = len(self.saved) - num_kept
        again = max(self.saved[:recomputed], default=0) - sum(self.saved[recomputed:])
        return max(self.head, self.layer, self.layer + again)


def footprint(config: ModelConfig, fmt: WeightFormat, num_tokens: int, trained: Trained) -> Footprint:
    """Of a micro-batch of so many tokens."""
    kinds = _representatives(config)
    per_token = {kind: _saved_per_token(config, fmt, kind, trained) for kind in set(kinds)}
    hidden = num_tokens * config.hidden_size * fmt.dtype.itemsize
    return Footprint(
        saved=tuple(round(num_tokens * per_token[kind]) for kind in kinds),
        inputs=(hidden,) + (2 * hidden,) * (config.num_layers - 1),
        layer=_layer_bytes(config, fmt, num_tokens, trained),
        head=_head_bytes(config, fmt, num_tokens, trained),
    )


def _representatives(config: ModelConfig) -> list[int]:
    """For each layer, the first layer of its kind."""
    first: dict[bool, int] = {}
    return [first.setdefault(config.is_moe_layer(index), index) for index in range(config.num_layers)]


def _layer_bytes(config: ModelConfig, fmt: WeightFormat, num_tokens: int, trained: Trained) -> int:
    """What one layer's backward takes beside what was saved: gradients of its outputs and of its widest step."""
    inner = config.intermediate_size
    if config.moe is not None:
        inner = max(inner, config.moe.intermediate_size)
    eager = 0 if _is_native(fmt) else 3 * inner
    activations = num_tokens * fmt.dtype.itemsize * (2 * inner + 2 * config.hidden_size + eager)
    gradients = largest_matrix(config) * 4 if trained.full else 0
    return max(activations, gradients) + _SCRATCH_BYTES


def _head_bytes(config: ModelConfig, fmt: WeightFormat, num_tokens: int, trained: Trained) -> int:
    """Hidden states and their gradients, and one chunk of logits if there are any."""
    hidden = 3 * num_tokens * config.hidden_size * fmt.dtype.itemsize
    rows = min(num_tokens, head_rows(config.vocab_size, fmt.device))
    per_logit = 4 if fmt.dtype is torch.float32 else 6
    if not _is_native(fmt):
        per_logit += 4  # plain torch exponentiates into a copy
    logits = rows * config.vocab_size * per_logit if trained.language else 0
    return hidden + logits + (_HEAD_PART_BYTES if trained.full else 0) + _SCRATCH_BYTES


def _is_native(fmt: WeightFormat) -> bool:
    return fmt.device.type == "cpu" and fmt.dtype is torch.float32


@lru_cache(maxsize=64)
def _saved_per_token(config: ModelConfig, fmt: WeightFormat, index: int, trained: Trained) -> float:
    """Bytes per token that autograd keeps of one layer: each storage once, parameters left out."""
    decoder = build_decoder(config, replace(fmt, device=torch.device("meta")))
    adapters = _train(decoder, trained)
    positions_T = torch.empty(_TRACED_TOKENS, dtype=torch.int64, device="meta")
    constants = {_storage_id(tensor) for tensor in (positions_T, *_constants(decoder))}
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if _storage_id(tensor) not in constants:
            found[_storage_id(tensor)] = tensor
        return tensor

    size = _TRACED_TOKENS, config.hidden_size
    x_TE, residual_TE = (torch.empty(size, dtype=fmt.dtype, device="meta", requires_grad=True) for _ in range(2))
    forward = Forward(positions_T, PackedAttention((_TRACED_TOKENS,)), adapters)
    with torch.inference_mode(mode=False), torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        decoder.layers[index](x_TE, residual_TE, forward)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values()) / _TRACED_TOKENS


def _train(decoder: Decoder, trained: Trained) -> tuple[LoraSegment, ...]:
    """Make leaves of what is trained."""
    if trained.full:
        for _, storage in decoder.storages():
            if isinstance(storage, Linear | Embedding):
                storage.weight.require_grad()
            elif isinstance(storage, Vector):
                storage.values.requires_grad_()
    if trained.targets is None:
        return ()
    targets = [BankTarget(f"{t.layer}.{t.path}", t.linear, t.part) for t in decoder.linears()]
    bank = AdapterBank(targets, max_adapters=1, num_rows=1, fmt=decoder.fmt)
    chosen = {t.path: (1, 1.0) for t in targets if not trained.targets or t.part in trained.targets}
    bank.leaves(bank.create("traced", chosen))
    return (LoraSegment(0, _TRACED_TOKENS, 0),)


def _constants(decoder: Decoder) -> Iterator[Tensor]:
    """Weights, tables, and arenas of adapters."""
    for _, storage in decoder.storages():
        if isinstance(storage, Vector):
            yield storage.values
        elif isinstance(storage, Linear | Embedding):
            yield storage.weight.weight_NK
    for target in decoder.linears():
        for part in target.linear.lora.values():
            yield from (part.a_RK, part.b_RN)


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
