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

from harmonia.kernels.again import keeping_less
from harmonia.kernels.fp8 import PART_BYTES
from harmonia.kernels.head import head_rows, logit_bytes
from harmonia.kernels.heads import rotated_heads
from harmonia.kernels.lora import LoraBatch, LoraSegment
from harmonia.kernels.packed_attention import packed_attention
from harmonia.kernels.projection import Heads
from harmonia.layers.adapters import AdapterBank, BankTarget
from harmonia.layers.embedding import Embedding
from harmonia.layers.forward import Forward, PackedAttention
from harmonia.layers.linear import Linear, WeightFormat
from harmonia.layers.parameter import Vector
from harmonia.models import ModelConfig
from harmonia.models.decoder import Decoder
from harmonia.models.families import build_decoder
from harmonia.models.sizes import activation_bytes, largest_matrix

_TRACED_TOKENS = 256
_SCRATCH_BYTES = {"cpu": 16 << 20, "cuda": 64 << 20}
"""Parts of weights that products unpack at a time, sums of parts, and scratch of attention."""
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
    rank: int = 16
    """Largest rank of an adapter in training."""


class Footprint(NamedTuple):
    """Bytes of a micro-batch."""

    saved: tuple[int, ...]
    """By layer, what it keeps for its backward."""
    lean: tuple[int, ...]
    """The same without what is cheap to compute again."""
    inputs: tuple[int, ...]
    """By layer, what it is computed anew from."""
    layer: int
    """Most that one layer's backward takes beside what was saved."""
    again: int
    """Most that a lean layer's backward takes beside `layer`: the widest thing that it computes again."""
    head: int
    """Most that one chunk of the head takes, hidden states included."""
    states: int = 0
    """What teachers make of the samples, until the heads have read it."""
    teacher: int = 0
    """Most that one layer of a teacher takes beside that, while nothing else of the micro-batch is there."""

    def resident(self, num_kept: int, num_whole: int | None = None) -> int:
        """What lives from forward to backward when the last `num_kept` layers are kept, `num_whole` of them whole."""
        inputs, lean, whole = self._parts(num_kept, num_whole)
        return sum(inputs) + sum(lean) + sum(whole) + self.states

    def slice(self, num_kept: int, num_whole: int | None = None) -> int:
        """Most that one slice takes beside that. Lean layers follow when whole ones are done, others after them."""
        inputs, lean, whole = self._parts(num_kept, num_whole)
        again = max(self.saved[: len(inputs)], default=0) - sum(lean) - sum(whole)
        lean_again = self.layer + self.again - sum(whole) if lean else 0
        reading = self.teacher - sum(inputs) - sum(lean) - sum(whole)
        return max(self.head, self.layer, self.layer + again, lean_again, reading)

    def _parts(self, num_kept: int, num_whole: int | None) -> tuple[tuple[int, ...], ...]:
        """What each layer holds: those that run again, lean ones, whole ones."""
        first_kept = len(self.saved) - num_kept
        first_whole = len(self.saved) - (num_kept if num_whole is None else num_whole)
        return self.inputs[:first_kept], self.lean[first_kept:first_whole], self.saved[first_whole:]


def footprint(config: ModelConfig, fmt: WeightFormat, num_tokens: int, trained: Trained) -> Footprint:
    """Of a micro-batch of so many tokens."""
    kinds = _representatives(config)
    saved, lean = (
        {kind: round(num_tokens * _saved_per_token(config, fmt, kind, trained, is_lean=lean)) for kind in set(kinds)}
        for lean in (False, True)
    )
    item = num_tokens * fmt.dtype.itemsize
    return Footprint(
        saved=tuple(saved[kind] for kind in kinds),
        lean=tuple(lean[kind] for kind in kinds),
        inputs=(item * config.hidden_size,) * config.num_layers,
        layer=_layer_bytes(config, fmt, num_tokens, trained),
        again=item * _inner_size(config),
        head=_head_bytes(config, fmt, num_tokens, trained),
    )


def _representatives(config: ModelConfig) -> list[int]:
    """For each layer, the first layer of its kind."""
    first: dict[bool, int] = {}
    return [first.setdefault(config.is_moe_layer(index), index) for index in range(config.num_layers)]


def _layer_bytes(config: ModelConfig, fmt: WeightFormat, num_tokens: int, trained: Trained) -> int:
    """What one layer's backward takes beside what was saved: gradients of its outputs and of its widest step."""
    inner = _inner_size(config)
    eager = 0 if _is_compiled(fmt) else 3 * inner
    activations = num_tokens * fmt.dtype.itemsize * (2 * inner + 2 * config.hidden_size + eager)
    gradients = largest_matrix(config) * 4 if trained.full and fmt.device.type == "cpu" else 0
    scratch = _SCRATCH_BYTES[fmt.device.type] + (PART_BYTES if fmt.fp8 else 0)
    return max(activations, gradients) + scratch + _adapter_bytes(config, fmt, num_tokens, trained)


def _adapter_bytes(config: ModelConfig, fmt: WeightFormat, num_tokens: int, trained: Trained) -> int:
    """Parts of adapters' gradients that are still to be added, on a GPU: fp32, two for each 512 features or tokens."""
    if trained.targets is None or fmt.device.type != "cuda":
        return 0
    columns = 16 if trained.rank <= 16 else -(-trained.rank // 32) * 32
    num_out = max(2 * _inner_size(config), (config.num_heads + 2 * config.num_kv_heads) * config.head_dim)
    return 2 * num_tokens * columns * num_out * 4 // 512


def _head_bytes(config: ModelConfig, fmt: WeightFormat, num_tokens: int, trained: Trained) -> int:
    """Hidden states and their gradients, and one chunk of logits if there are any."""
    hidden = 3 * num_tokens * config.hidden_size * fmt.dtype.itemsize
    rows = min(num_tokens, head_rows(config.vocab_size, config.hidden_size, fmt.device))
    logits = rows * head_row_bytes(config, fmt) if trained.language else 0
    part = _HEAD_PART_BYTES if trained.full and fmt.device.type == "cpu" else 0
    return hidden + logits + part + _SCRATCH_BYTES[fmt.device.type]


def reading_bytes(config: ModelConfig, fmt: WeightFormat, num_tokens: int) -> int:
    """Most that one slice takes in which a teacher reads so many tokens."""
    return activation_bytes(config, fmt, num_tokens) + _SCRATCH_BYTES[fmt.device.type] + (PART_BYTES if fmt.fp8 else 0)


def head_row_bytes(config: ModelConfig, fmt: WeightFormat) -> int:
    """Logits of one row of a chunk, and what is beside them."""
    per_logit = logit_bytes(fmt.dtype, fmt.device)
    if not _is_compiled(fmt) or fmt.int8:
        per_logit += 4  # plain torch exponentiates into a copy, or scales one
    return config.vocab_size * per_logit


def _inner_size(config: ModelConfig) -> int:
    return max(config.intermediate_size, 0 if config.moe is None else config.moe.intermediate_size)


def _is_compiled(fmt: WeightFormat) -> bool:
    """Our kernels run, which need no copies."""
    return fmt.device.type == "cuda" or fmt.dtype is torch.float32


@lru_cache(maxsize=64)
def _saved_per_token(config: ModelConfig, fmt: WeightFormat, index: int, trained: Trained, *, is_lean: bool) -> float:
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
    x_TE = torch.empty(size, dtype=fmt.dtype, device="meta", requires_grad=True)
    packed = _TracedAttention if fmt.device.type == "cuda" else PackedAttention
    forward = Forward(positions_T, packed((_TRACED_TOKENS,)), adapters)
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        keeping_less(is_lean),
        saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        decoder.layers[index](x_TE, None, forward)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values()) / _TRACED_TOKENS


class _TracedAttention(PackedAttention):
    """Keeps what attention on a GPU keeps, where one launch makes heads of the projection."""

    def attend(
        self, layer: int, qkv_TF: Tensor, heads: Heads, positions_T: Tensor, *, scale: float, window: int
    ) -> Tensor:
        """As for a GPU."""
        q_THD, k_TGD, v_TGD = rotated_heads(qkv_TF, heads, positions_T, "triton")
        return packed_attention(q_THD, k_TGD, v_TGD, self.lengths, scale, window)


def _train(decoder: Decoder, trained: Trained) -> LoraBatch | None:
    """Make leaves of what is trained."""
    if trained.full:
        for _, storage in decoder.storages():
            if isinstance(storage, Linear | Embedding):
                storage.weight.require_grad()
            elif isinstance(storage, Vector):
                storage.values.requires_grad_()
    if trained.targets is None:
        return None
    targets = [BankTarget(f"{t.layer}.{t.path}", t.linear, t.part) for t in decoder.linears()]
    bank = AdapterBank(targets, max_adapters=1, num_rows=1, fmt=decoder.fmt)
    chosen = {t.path: (1, 1.0) for t in targets if not trained.targets or t.part in trained.targets}
    bank.leaves(bank.create("traced", chosen))
    return LoraBatch((LoraSegment(0, _TRACED_TOKENS, 0),))


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
