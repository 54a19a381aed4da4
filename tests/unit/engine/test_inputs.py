"""The integers of a step: the same through the one buffer of a GPU as from the batch itself."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
import torch

from harmonia.engine.batch import Batch, Work, build_batch
from harmonia.engine.inputs import DeviceInputs, HostInputs, Room, StepInputs
from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.engine.sequence import Drafter, Instance, Sequence
from harmonia.engine.steps import Shape, Shapes
from harmonia.protocol.sampling import SamplingParams

BLOCK_SIZE, MAX_RUNNING, MAX_BLOCKS = 4, 8, 16
CPU = torch.device("cpu")
FIELDS = [field.name for field in dataclasses.fields(StepInputs)]


def work(
    seq_id: int, start: int, count: int, adapter: int | None = None, *, num_unknown: int = 0, **settings: Any
) -> Work:
    """num_unknown: of its tokens, so many are on the device only."""
    request = SequenceRequest(
        seq_id=seq_id,
        model="base",
        token_ids=pack_ids(range(seq_id, seq_id + start + count - num_unknown)),
        sampling=SamplingParams(max_tokens=8),
        arrival_s=time.monotonic(),
    )
    sequence = Sequence.create(request, Instance("base", 0, b"", adapter, drafter=Drafter.MODEL), frozenset(), 64)
    sequence.slot = seq_id
    return Work(sequence, start, count, 0, **{"samples": True, **settings})


def batch_of(*shares: Work, keep_as: int = 0) -> Batch:
    table = np.arange(MAX_RUNNING * MAX_BLOCKS, dtype=np.int32).reshape(MAX_RUNNING, MAX_BLOCKS)
    return build_batch(list(shares), table, BLOCK_SIZE, keep_as=keep_as)


def device_inputs() -> DeviceInputs:
    return DeviceInputs(32, MAX_RUNNING, MAX_RUNNING * MAX_BLOCKS, CPU)


MIXED = batch_of(work(0, 9, 1), work(1, 0, 7), work(2, 4, 1, adapter=1), work(3, 8, 5, adapter=0))
DECODES = batch_of(work(4, 9, 1), work(1, 3, 1), work(2, 20, 1, adapter=1))
CATCH_UP = batch_of(work(4, 8, 2, apart=True), work(1, 3, 1), work(2, 5, 4, apart=True, samples=False), keep_as=1)
"""What a draft lacks of three sequences, two of which it then proposes for."""
SHAPES = Shapes(rows=(1, 2, 4, 8), prompts=(16, 24), max_sequences=4)


@pytest.mark.parametrize("batch", [MIXED, DECODES, CATCH_UP])
@pytest.mark.parametrize("room", [None, Room(MAX_RUNNING, MAX_RUNNING), Room(20, 5), Room(32, MAX_RUNNING)])
def test_one_buffer_holds_what_the_batch_says(batch: Batch, room: Room | None) -> None:
    if room is not None and room.num_tokens < batch.num_tokens:
        pytest.skip("it does not fit")
    expected = HostInputs().put(batch)
    inputs = device_inputs().put(batch, room)
    for name in FIELDS:
        found = getattr(inputs, name)
        assert found.dtype is torch.int32
        assert found.tolist() == getattr(expected, name).tolist(), name


@pytest.mark.parametrize(
    ("batch", "room"), [(DECODES, Room(5, 5)), (MIXED, Room(24, 6)), (MIXED, Room(32, 8)), (CATCH_UP, Room(8, 8))]
)
def test_a_graph_finds_batches_where_it_was_captured_and_padding_behind_them(batch: Batch, room: Room) -> None:
    source = device_inputs()
    captured = source.padded(room)
    source.put(MIXED)
    source.put(batch, room)
    expected = HostInputs().put(batch)
    paddings = dict.fromkeys(("fed_slots_T", "slots_T", "adapter_slots_T", "sample_slots_R"), -1)
    paddings["query_starts_S1"] = batch.num_tokens
    for name in FIELDS[:-1]:
        found = getattr(captured, name).tolist()
        known = getattr(expected, name).tolist()
        assert found == known + [paddings.get(name, 0)] * (len(found) - len(known)), name
    assert captured.blocks_B[: len(batch.blocks_B)].tolist() == batch.blocks_B.tolist()


@pytest.mark.parametrize("room", [Room(MAX_RUNNING, MAX_RUNNING), Room(32, 1), Room(32, MAX_RUNNING)])
def test_padding_of_any_batch_fits(room: Room) -> None:
    inputs = device_inputs().padded(room)
    num_rows = room.num_sequences
    assert {len(getattr(inputs, name)) for name in FIELDS[:5]} == {room.num_tokens}
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


def test_few_tokens_that_a_draft_lacks_are_rows_of_their_own() -> None:
    assert CATCH_UP.has_single_tokens and not CATCH_UP.is_decode
    assert CATCH_UP.positions_T.tolist() == [8, 9, 3, 5, 6, 7, 8]
    assert CATCH_UP.context_lens_S.tolist() == [9, 10, 4, 6, 7, 8, 9]
    assert CATCH_UP.block_starts_S.tolist() == [0, 0, 3, 4, 4, 4, 4], "rows of a sequence share its blocks"
    assert CATCH_UP.fed_slots_T.tolist() == [-1] * 7
    assert CATCH_UP.sample_rows_R.tolist() == [1, 2]
    assert CATCH_UP.sample_slots_R.tolist() == [MAX_RUNNING + 4, MAX_RUNNING + 1]


def test_proposals_are_fed_on_the_device_and_so_verified() -> None:
    second = batch_of(work(4, 10, 1, num_unknown=1, proposal=1), work(1, 4, 1, num_unknown=1, proposal=1), keep_as=2)
    assert second.fed_slots_T.tolist() == CATCH_UP.sample_slots_R.tolist()
    verified = batch_of(work(4, 9, 3, num_unknown=2, num_drafted=2, apart=True), work(1, 3, 1))
    assert verified.is_decode
    assert verified.fed_slots_T.tolist() == [-1, MAX_RUNNING + 4, 2 * MAX_RUNNING + 4, -1]
    assert second.sample_slots_R.tolist()[0] == verified.fed_slots_T.tolist()[2]


def test_a_draft_sees_no_adapters() -> None:
    batch = batch_of(work(4, 9, 1, adapter=1), keep_as=1)
    assert batch.adapter_slots_T.tolist() == [-1] and not batch.segments


@pytest.mark.parametrize(
    ("batch", "room", "num_decodes"),
    [
        (CATCH_UP, Room(8, 8), 8),
        (batch_of(work(4, 9, 3, num_drafted=2, apart=True), work(1, 3, 1)), Room(4, 4), 4),
        (batch_of(work(1, 3, 1)), Room(1, 1), 1),
        (batch_of(work(1, 3, 1, samples=False)), Room(1, 1), 1),
        (MIXED, Room(16, 4), 0),
        (batch_of(work(1, 0, 20)), Room(24, 4), 0),
    ],
)
def test_passes_are_padded_to_the_next_graph(batch: Batch, room: Room, num_decodes: int) -> None:
    assert SHAPES.fit(batch) == Shape(room, num_decodes, bool(batch.segments))
    assert SHAPES.fit(batch) in SHAPES.all(adapted=bool(batch.segments))


def test_what_has_no_graph_is_run_without() -> None:
    assert SHAPES.fit(batch_of(work(1, 0, 25))) is None
    assert SHAPES.fit(batch_of(*(work(seq_id, 0, 3) for seq_id in range(5)))) is None, "too many sequences"
    assert Shapes().fit(DECODES) is None
