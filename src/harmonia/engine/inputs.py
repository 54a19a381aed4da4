"""The integers of a step on its device, and how they and its results travel.

On a GPU a step's integers are written into pinned memory and sent in one copy, to the same addresses whenever a batch
has the same shape: captured graphs read them there. Nothing here waits for the device.
Shapes: T tokens, S sequences, B blocks of all of them, R rows that sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harmonia.engine.batch import Batch

_NUM_STAGES = 3
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
    """Running slots of their sequences."""
    blocks_B: Tensor


class HostInputs:
    """Inputs of a CPU: the batch's own arrays."""

    def put(self, batch: Batch) -> StepInputs:
        """The arrays as tensors."""
        return StepInputs(*(torch.from_numpy(np.ascontiguousarray(field.array)) for field in _fields(batch)))


class DeviceInputs:
    """Inputs of a GPU, in one buffer."""

    def __init__(self, max_tokens: int, max_running: int, max_blocks: int, device: torch.device) -> None:
        """max_blocks: of one sequence."""
        size = 5 * _aligned(max_tokens) + 5 * _aligned(max_running + 1) + max_running * max_blocks
        self._device_I = torch.zeros(size, dtype=torch.int32, device=device)
        pinned = device.type == "cuda"
        self._stages = [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(_NUM_STAGES)]
        self._arrays = [stage.numpy() for stage in self._stages]
        self._next = 0
        self._rows: dict[tuple[int, int], list[Tensor]] = {}
        """The parts of the buffer that padded batches take, by (rows, those that are filled)."""

    def put(self, batch: Batch, num_rows: int | None = None) -> StepInputs:
        """Send a batch; with `num_rows`, a batch of single tokens, with padding behind it up to so many."""
        stage_I, array_I = self._stages[self._next], self._arrays[self._next]
        self._next = (self._next + 1) % _NUM_STAGES
        start, spans = 0, list[slice]()
        for field in _fields(batch):
            stop = start + len(field.array)
            array_I[start:stop] = field.array
            spans.append(slice(start, stop))
            if num_rows is not None and field.padding is not None:
                end = start + num_rows + field.extra
                array_I[stop:end] = field.padding
                stop = end
            start = _aligned(stop)
        self._device_I[:start].copy_(stage_I[:start], non_blocking=True)
        if num_rows is None:
            return StepInputs(*(self._device_I[span] for span in spans))
        size = num_rows, batch.num_tokens
        if size not in self._rows:
            self._rows[size] = [self._device_I[span] for span in spans[:-1]]
        return StepInputs(*(*self._rows[size], self._device_I[spans[-1]]))

    def padded(self, num_tokens: int, num_sequences: int | None = None) -> StepInputs:
        """Where the inputs of a batch stand, holding padding only: what a graph is captured with.

        Of single tokens, unless the number of sequences is given.
        """
        spans, start = [], 0
        for is_per_token, extra in _LAYOUT:
            stop = start + (num_tokens if is_per_token or num_sequences is None else num_sequences) + extra
            spans.append(slice(start, stop))
            start = _aligned(stop)
        spans.append(slice(start, None))
        inputs = StepInputs(*(self._device_I[span] for span in spans))
        self._device_I.zero_()
        for tensor in (inputs.fed_slots_T, inputs.slots_T, inputs.adapter_slots_T):
            tensor.fill_(_NONE)
        return inputs


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


class _Field(NamedTuple):
    array: np.ndarray
    padding: int | None = 0
    """What rows beyond the batch hold; None: not by row."""
    extra: int = 0
    """Entries beyond one for each row."""


def _fields(batch: Batch) -> tuple[_Field, ...]:
    """In the order of `StepInputs`."""
    return (
        _Field(batch.token_ids_T),
        _Field(batch.fed_slots_T, _NONE),
        _Field(batch.positions_T),
        _Field(batch.slots_T, _NONE),
        _Field(batch.adapter_slots_T, _NONE),
        _Field(batch.context_lens_S),
        _Field(batch.query_starts_S1, extra=1),
        _Field(batch.block_starts_S),
        _Field(batch.sample_rows_R),
        _Field(batch.sample_slots_R),
        _Field(batch.blocks_B, None),
    )


_LAYOUT = (*((True, 0),) * 5, (False, 0), (False, 1), *((False, 0),) * 3)
"""Of each field but the last: whether it has an entry for each token, else for each sequence, and how many beyond."""


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
