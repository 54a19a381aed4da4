"""The integers of a step on its device, and how they and its results travel.

On a GPU a step's integers are written into pinned memory and sent in one copy, to the same addresses whenever a batch
has the same shape: captured graphs read them there. Nothing here waits for the device.
Shapes: T tokens, S sequences, B blocks of all of them, R rows that sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harmonia.config import CacheConfig, EngineConfig, SchedulerConfig
from harmonia.engine.batch import Batch
from harmonia.protocol.instances import MAX_DRAFT_STEPS

NUM_STAGES = 3
"""Copies on their way at once: those of the step that runs, the one behind it, and the one being written."""
_ALIGNMENT = 4
"""Fields begin at multiples of 16 bytes, so that one compiled kernel serves every batch size."""
_NONE = -1


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the model and the sampler read of a batch; 32 bits on a GPU."""

    token_ids_T: Tensor
    fed_slots_T: Tensor
    """-1, or the running slot whose last sampled id is the token."""
    positions_T: Tensor
    slots_T: Tensor
    """Place of each token in the cache; -1 for padding."""
    adapter_slots_T: Tensor
    """Slot of each token's adapter in the bank; -1 without."""
    context_lens_S: Tensor
    """0 for padding."""
    query_starts_S1: Tensor
    block_starts_S: Tensor
    sample_rows_R: Tensor
    """Rows of the batch that are sampled from."""
    sample_slots_R: Tensor
    """Where their ids are kept; -1 for padding."""
    blocks_B: Tensor


class Room(NamedTuple):
    """What a padded batch has place for."""

    num_tokens: int
    num_sequences: int


class HostInputs:
    """Inputs of a CPU: the batch's own arrays."""

    def put(self, batch: Batch) -> StepInputs:
        """The arrays as tensors."""
        return StepInputs(*(torch.from_numpy(np.ascontiguousarray(field.array)) for field in _fields(batch)))


class DeviceInputs:
    """Inputs of a GPU, in one buffer."""

    def __init__(
        self, max_tokens: int, max_rows: int, max_blocks: int, device: torch.device, *, num_stages: int = NUM_STAGES
    ) -> None:
        """max_rows: of a batch whose rows share the blocks of fewer sequences. max_blocks: of these, all together.

        num_stages: copies that are on their way at once, and the one that is being written.
        """
        size = _num_entries(max_tokens, max_rows, max_blocks)
        self._device_I = torch.zeros(size, dtype=torch.int32, device=device)
        pinned = device.type == "cuda"
        self._stages = [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(num_stages)]
        self._arrays = [stage.numpy() for stage in self._stages]
        self._next = 0
        self._rows: dict[tuple[Room, int, int], list[Tensor]] = {}
        """The parts of the buffer that padded single tokens take, by (room, tokens, those that sample)."""

    def put(self, batch: Batch, room: Room | None = None) -> StepInputs:
        """Send a batch, with padding behind each field up to what there is room for."""
        stage_I, array_I = self._stages[self._next], self._arrays[self._next]
        self._next = (self._next + 1) % len(self._stages)
        start, spans = 0, list[slice]()
        for field in _fields(batch):
            stop = start + len(field.array)
            array_I[start:stop] = field.array
            spans.append(slice(start, stop))
            if room is not None and field.size is not None:
                end = start + field.size.within(room)
                array_I[stop:end] = field.padding
                stop = end
            start = _aligned(stop)
        self._device_I[:start].copy_(stage_I[:start], non_blocking=True)
        if room is None or not batch.has_single_tokens:
            return StepInputs(*(self._device_I[span] for span in spans))
        size = room, batch.num_tokens, len(batch.generating)
        if size not in self._rows:
            self._rows[size] = [self._device_I[span] for span in spans[:-1]]
        return StepInputs(*(*self._rows[size], self._device_I[spans[-1]]))

    def padded(self, room: Room) -> StepInputs:
        """Where the inputs of a batch stand, holding padding only: what a graph is captured with."""
        spans, start = [], 0
        for size in _SIZES:
            stop = start + size.within(room)
            spans.append(slice(start, stop))
            start = _aligned(stop)
        spans.append(slice(start, None))
        inputs = StepInputs(*(self._device_I[span] for span in spans))
        self._device_I.zero_()
        for tensor in (inputs.fed_slots_T, inputs.slots_T, inputs.adapter_slots_T, inputs.sample_slots_R):
            tensor.fill_(_NONE)
        return inputs


def input_bytes(config: EngineConfig, max_seq_len: int, device: torch.device) -> int:
    """What `DeviceInputs` take on the device for all steps of a model; config: with its `scheduler` resolved."""
    if device.type == "cpu":
        return 0
    return 4 * _num_entries(*input_limits(config.scheduler, config.cache, max_seq_len))


def input_limits(scheduler: SchedulerConfig, cache: CacheConfig, max_seq_len: int) -> tuple[int, int, int]:
    """(tokens, rows, blocks) of a step, at most."""
    assert scheduler.max_batch_tokens is not None, "the plan resolves it"
    max_rows = max(
        scheduler.max_running, min(scheduler.max_running * (1 + MAX_DRAFT_STEPS), scheduler.max_batch_tokens)
    )
    return scheduler.max_batch_tokens, max_rows, scheduler.max_running * -(-max_seq_len // cache.block_size)


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device, without waiting for what runs there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def fetch(tensor: Tensor) -> Tensor:
    """A tensor on the host; its values are there once what was launched so far is done."""
    if tensor.is_cpu:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class _Size(NamedTuple):
    """How many entries a field has."""

    is_per_token: bool
    """Else for each sequence."""
    extra: int = 0

    def within(self, room: Room) -> int:
        """The most that fit."""
        return (room.num_tokens if self.is_per_token else room.num_sequences) + self.extra


_TOKENS, _SEQUENCES = _Size(True), _Size(False)
_SIZES = (*(_TOKENS,) * 5, _SEQUENCES, _Size(False, extra=1), *(_SEQUENCES,) * 3)
"""Of each field but the last."""


class _Field(NamedTuple):
    array: np.ndarray
    size: _Size | None
    """None: of another number in each batch."""
    padding: int
    """What entries beyond the batch hold."""


def _fields(batch: Batch) -> Iterator[_Field]:
    """In the order of `StepInputs`."""
    arrays = (
        *(batch.token_ids_T, batch.fed_slots_T, batch.positions_T, batch.slots_T, batch.adapter_slots_T),
        *(batch.context_lens_S, batch.query_starts_S1, batch.block_starts_S),
        *(batch.sample_rows_R, batch.sample_slots_R, batch.blocks_B),
    )
    # Padding has no place in the cache and no adapter, its sequences have no tokens, and what it samples is not kept.
    padding = 0, _NONE, 0, _NONE, _NONE, 0, batch.num_tokens, 0, 0, _NONE, 0
    return map(_Field, arrays, (*_SIZES, None), padding)


def _num_entries(max_tokens: int, max_rows: int, max_blocks: int) -> int:
    return 5 * _aligned(max(max_tokens, max_rows)) + 5 * _aligned(max_rows + 1) + max_blocks


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
