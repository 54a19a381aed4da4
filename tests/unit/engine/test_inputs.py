"""The integers of a step: the same through the one buffer of a GPU as from the batch itself."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch

from harmonia.engine.batch import Batch, Work, build_batch
from harmonia.engine.inputs import DeviceInputs, HostInputs, StepInputs
from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.engine.sequence import Instance, Sequence
from harmonia.protocol.sampling import SamplingParams

BLOCK_SIZE, MAX_RUNNING, MAX_BLOCKS = 4, 8, 16
CPU = torch.device("cpu")
FIELDS = [field.name for field in dataclasses.fields(StepInputs)]


def work(seq_id: int, start: int, count: int, adapter: int | None = None) -> Work:
    request = SequenceRequest(
        seq_id=seq_id,
        model="base",
        token_ids=pack_ids(range(seq_id, seq_id + start + count)),
        sampling=SamplingParams(max_tokens=8),
        arrival_s=time.monotonic(),
    )
    sequence = Sequence.create(request, Instance("base", 0, b"", adapter), frozenset(), 64)
    sequence.slot = seq_id
    return Work(sequence, start, count, 0, samples=True)


def batch_of(*shares: Work) -> Batch:
    table = np.arange(MAX_RUNNING * MAX_BLOCKS, dtype=np.int32).reshape(MAX_RUNNING, MAX_BLOCKS)
    return build_batch(list(shares), table, BLOCK_SIZE)


def device_inputs() -> DeviceInputs:
    return DeviceInputs(32, MAX_RUNNING, MAX_BLOCKS, CPU)


MIXED = batch_of(work(0, 9, 1), work(1, 0, 7), work(2, 4, 1, adapter=1), work(3, 8, 5, adapter=0))
DECODES = batch_of(work(4, 9, 1), work(1, 3, 1), work(2, 20, 1, adapter=1))


@pytest.mark.parametrize("batch", [MIXED, DECODES])
@pytest.mark.parametrize("padded", [False, True])
def test_one_buffer_holds_what_the_batch_says(batch: Batch, padded: bool) -> None:
    expected = HostInputs().put(batch)
    inputs = device_inputs().put(batch, MAX_RUNNING if padded and batch is DECODES else None)
    for name in FIELDS:
        found = getattr(inputs, name)
        assert found.dtype is torch.int32
        assert found.tolist() == getattr(expected, name).tolist(), name


def test_a_graph_finds_batches_where_it_was_captured_and_padding_behind_them() -> None:
    source = device_inputs()
    captured = source.padded(5)
    source.put(MIXED)
    source.put(DECODES, 5)
    expected = HostInputs().put(DECODES)
    for name in FIELDS[:-1]:
        found = getattr(captured, name).tolist()
        known = getattr(expected, name).tolist()
        padding = {"fed_slots_T": -1, "slots_T": -1, "adapter_slots_T": -1}.get(name, 0)
        assert found == known + [padding] * (len(found) - len(known)), name
    assert captured.blocks_B[: len(DECODES.blocks_B)].tolist() == DECODES.blocks_B.tolist()


@pytest.mark.parametrize(("num_tokens", "num_sequences"), [(MAX_RUNNING, None), (32, 1), (32, MAX_RUNNING)])
def test_padding_of_any_batch_fits(num_tokens: int, num_sequences: int | None) -> None:
    inputs = device_inputs().padded(num_tokens, num_sequences)
    num_rows = num_sequences or num_tokens
    assert {len(getattr(inputs, name)) for name in FIELDS[:5]} == {num_tokens}
    assert [len(getattr(inputs, name)) for name in FIELDS[5:-1]] == [num_rows, num_rows + 1, *[num_rows] * 3]
    assert len(inputs.blocks_B) >= num_rows * MAX_BLOCKS


def test_a_copy_on_its_way_is_not_overwritten_by_the_next_two() -> None:
    source = device_inputs()
    stages = {stage.data_ptr() for stage in source._stages}
    assert len(stages) == 3


def test_a_batch_says_where_everything_stands() -> None:
    assert [item.sequence.request.seq_id for item in MIXED.work] == [0, 2, 1, 3]
    assert MIXED.query_starts_S1.tolist() == [0, 1, 2, 9, 14]
    assert MIXED.context_lens_S.tolist() == [10, 5, 7, 13]
    assert MIXED.block_starts_S.tolist() == [0, 3, 5, 7]
    assert MIXED.blocks_B.tolist() == [0, 1, 2, 32, 33, 16, 17, 48, 49, 50, 51]
    assert MIXED.adapter_slots_T.tolist() == [-1, 1] + [-1] * 7 + [0] * 5
    assert MIXED.sample_rows_R.tolist() == [0, 1, 8, 13]
    assert not MIXED.is_decode
    assert DECODES.is_decode
