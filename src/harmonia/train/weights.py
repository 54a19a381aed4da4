"""What an instance in training changes: an adapter's two places in the bank, or a whole backbone; and its scalar head.

Both offer the same: leaves that gradients go to, a parameter set that moves masters, and `publish`, which brings the
masters to where the next version is served from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from harmonia.layers.adapters import AdapterBank
from harmonia.layers.embedding import Embedding
from harmonia.layers.linear import Linear, LoraLeaves
from harmonia.layers.parameter import Vector
from harmonia.models.decoder import Decoder
from harmonia.models.export import read_parameter
from harmonia.models.families import build_decoder
from harmonia.train.parameters import ParameterSet
from harmonia.train.scalar_head import ScalarHead

HEAD_NAME = "score.weight"


class TrainedWeights(Protocol):
    """Weights in training."""

    parameters: ParameterSet
    head: ScalarHead | None
    """Its leaf; what is served are snapshots of it."""

    @property
    def slot(self) -> int | None:
        """Place in the bank of the present version; None for a whole backbone."""
        ...

    @property
    def idle_slot(self) -> int | None:
        """Place that the next version will take; nothing in flight may use it then."""
        ...

    def step(self, *, lr: float, wd: float, max_grad_norm: float, num_samples: int) -> float:
        """Move the masters as `ParameterSet.step` does, and write them to where the next version is read."""
        ...

    def publish(self) -> None:
        """Let the masters be the next version; writes them unless the last step did."""
        ...

    def leaves(self) -> dict[str, Tensor]:
        """Leaves of the present version, by name."""
        ...

    def release(self) -> None:
        """Stop training: nothing gathers gradients any more."""
        ...


class TrainedAdapter:
    """An adapter with two places in the bank. The present version is served and trained from one of them."""

    def __init__(self, bank: AdapterBank, slots: tuple[int, int], head: ScalarHead | None) -> None:
        self._bank = bank
        self._slots = slots
        self._active = 0
        self.head = _as_leaf(head)
        self.parameters = ParameterSet(self._leaves_of(slots[0]), own_masters=True)
        self.parameters.attach(self._leaves_of(slots[1]))

    @property
    def slot(self) -> int:
        """Place of the present version."""
        return self._slots[self._active]

    @property
    def idle_slot(self) -> int:
        """Place of the next version."""
        return self._slots[1 - self._active]

    def step(self, *, lr: float, wd: float, max_grad_norm: float, num_samples: int) -> float:
        """Move the masters and write the idle place."""
        idle = self._leaves_of(self.idle_slot)
        return self.parameters.step(idle, lr=lr, wd=wd, max_grad_norm=max_grad_norm, num_samples=num_samples)

    def publish(self) -> None:
        """Write the idle place, if that is still to do, and flip."""
        self.parameters.write_to(self._leaves_of(self.idle_slot))
        self._active = 1 - self._active

    def leaves(self) -> dict[str, Tensor]:
        """`{path}.lora_A` as [r, K], `{path}.lora_B` as [r, N], and the head."""
        return self._leaves_of(self.slot)

    def release(self) -> None:
        """The bank's rows become plain again; both slots stay taken."""
        for slot in self._slots:
            self._bank.drop_leaves(slot)

    def _leaves_of(self, slot: int) -> dict[str, Tensor]:
        leaves = named_leaves(self._bank.leaves(slot))
        if self.head is not None:
            leaves[HEAD_NAME] = self.head.weight_E
        return leaves


class TrainedBackbone:
    """Every weight of a decoder that nobody else uses, updated in place."""

    slot = None
    idle_slot = None

    def __init__(self, decoder: Decoder, head: ScalarHead | None) -> None:
        self._decoder = decoder
        self.head = _as_leaf(head)
        self._leaves = _decoder_leaves(decoder, with_head=head is None)
        if self.head is not None:
            self._leaves[HEAD_NAME] = self.head.weight_E
        self.parameters = ParameterSet(self._leaves, own_masters=decoder.fmt.dtype is not torch.float32)

    def step(self, *, lr: float, wd: float, max_grad_norm: float, num_samples: int) -> float:
        """Move the masters and round them into the weights."""
        return self.parameters.step(self._leaves, lr=lr, wd=wd, max_grad_norm=max_grad_norm, num_samples=num_samples)

    def publish(self) -> None:
        """Round the masters into the weights, unless that is done or they are the same memory."""
        self.parameters.write_to(self._leaves)

    def leaves(self) -> dict[str, Tensor]:
        """One per storage, in the layout in which it is kept."""
        return self._leaves

    def release(self) -> None:
        """The backbone goes away with its instance."""


def named_leaves(leaves: Mapping[str, LoraLeaves]) -> dict[str, Tensor]:
    """An adapter's leaves by tensor instead of by module."""
    named = {}
    for path, pair in leaves.items():
        named[f"{path}.lora_A"], named[f"{path}.lora_B"] = pair.a_rK, pair.b_rN
    return named


def _as_leaf(head: ScalarHead | None) -> ScalarHead | None:
    return None if head is None else ScalarHead(head.weight_E.detach().clone().requires_grad_())


def _decoder_leaves(decoder: Decoder, *, with_head: bool) -> dict[str, Tensor]:
    """Leaves of all storages, named after their first parameter. A scoring model does not use its language head."""
    leaves, seen = {}, set[int]()
    parameters = list(decoder.parameters())  # held, so that no two storages get the same id
    for parameter in parameters:
        storage = parameter.storage
        if id(storage) in seen or (storage is decoder.head and not with_head):
            continue
        seen.add(id(storage))
        if isinstance(storage, Linear | Embedding):
            leaves[parameter.name] = storage.weight.require_grad()
        elif isinstance(storage, Vector):
            leaves[parameter.name] = storage.values.requires_grad_()
    return leaves


def random_adapter(bank: AdapterBank, key: str, targets: Mapping[str, tuple[int, float]], seed: int) -> int:
    """A new adapter that changes nothing yet: A uniform within 1 / sqrt(K), B zero. Its slot.

    Hu et al., LoRA, 2021; the distribution is that of PEFT.
    """
    slot = bank.create(key, targets)
    generator = torch.Generator().manual_seed(seed)
    matrices = bank.read(slot)
    for lora in matrices.values():
        rank, num_in = lora.a_rK.shape
        noise_rK = torch.rand(rank, num_in, generator=generator) * 2 - 1
        lora.a_rK.copy_(noise_rK / num_in**0.5)
    bank.write(slot, matrices)
    return slot


def copy_decoder(decoder: Decoder) -> Decoder:
    """The same weights in memory of their own."""
    copy = build_decoder(decoder.config, decoder.fmt)
    for parameter in copy.parameters():
        parameter.fill(0, read_parameter(decoder, parameter.name))
    copy.pack()
    return copy
