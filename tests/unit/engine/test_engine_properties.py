"""Random arrivals, lengths, cancels, pauses, forks and evictions: nothing is lost, and company changes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmonia.engine.engine import Engine
from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.models.decoder import Decoder
from harmonia.protocol.sampling import SamplingParams
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.tiny import Reference, drain, write_adapter

ADAPTERS = ("low", "wide")


@dataclass(frozen=True)
class Arrival:
    prompt: tuple[int, ...]
    max_tokens: int
    model: str
    session: str | None
    num_forks: int
    fate: str
    steps_before: int


# Prompts are built from few pieces, so that many share prefixes.
PIECES = [(1, 2, 3, 4), (5, 6, 7), (8,), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)]
ARRIVALS = st.lists(
    st.builds(
        Arrival,
        prompt=st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map(lambda parts: sum(parts, ())),
        max_tokens=st.integers(1, 14),
        model=st.sampled_from(["base", "base", *ADAPTERS]),
        session=st.sampled_from([None, "a", "b"]),
        num_forks=st.integers(1, 3),
        fate=st.sampled_from(["live", "live", "live", "cancel", "pause"]),
        steps_before=st.integers(0, 6),
    ),
    min_size=1,
    max_size=10,
)


@pytest.fixture(scope="module")
def adapter_paths(tmp_path_factory: pytest.TempPathFactory, decoder: Decoder) -> dict[str, str]:
    root: Path = tmp_path_factory.mktemp("adapters")
    return {
        "low": write_adapter(root / "low", decoder, rank=2, alpha=8, targets=["q_proj", "v_proj"], seed=1),
        "wide": write_adapter(root / "wide", decoder, rank=5, alpha=5, targets=["o_proj", "gate_proj"], seed=2),
    }


@dataclass(frozen=True)
class Setup:
    num_blocks: int
    max_batch_tokens: int
    prefix_caching: bool
    num_overlapped: int  # 1 is what a GPU does


SETUPS = st.builds(
    Setup,
    num_blocks=st.integers(14, 40),
    max_batch_tokens=st.integers(3, 30),
    prefix_caching=st.booleans(),
    num_overlapped=st.integers(0, 1),
)


@given(arrivals=ARRIVALS, setup=SETUPS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_request_gets_what_it_gets_alone(
    make_engine: MakeEngine,
    reference: Reference,
    adapter_paths: dict[str, str],
    arrivals: list[Arrival],
    setup: Setup,
) -> None:
    engine = make_engine(setup.num_blocks, max_batch_tokens=setup.max_batch_tokens)
    engine._scheduler._prefix_caching = setup.prefix_caching
    engine._num_overlapped = setup.num_overlapped
    for key, path in adapter_paths.items():
        engine.load_adapter(key, path)
    expected, produced = _play(engine, reference, arrivals)
    for outputs in drain(engine).items():
        produced.setdefault(outputs[0], []).extend(token for output in outputs[1] for token in output.token_ids)
    for seq_id, tokens in expected.items():
        assert produced.get(seq_id) == tokens
    pool = engine.backbone.pool
    assert pool.num_held == 0
    assert sorted(pool.allocate(pool.num_blocks)) == list(range(pool.num_blocks))
    assert not engine._scheduler._pending
    assert len(engine._scheduler._free_slots) == 4


def _play(
    engine: Engine, reference: Reference, arrivals: list[Arrival]
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    expected: dict[int, list[int]] = {}
    produced: dict[int, list[int]] = {}
    cancelled: set[int] = set()
    for index, arrival in enumerate(arrivals):
        ids = range(index * 10, index * 10 + arrival.num_forks)
        for seq_id in ids:
            engine.add(_request(seq_id, arrival))
            slot = None if arrival.model == "base" else ADAPTERS.index(arrival.model)
            expected[seq_id] = reference.generate(arrival.prompt, arrival.max_tokens, slot)
        if arrival.fate == "pause":
            engine.hold(ids[0])
        for _ in range(arrival.steps_before):
            for output in engine.step():
                assert output.seq_id not in cancelled, "nothing comes after a cancel"
                assert output.error is None
                produced.setdefault(output.seq_id, []).extend(output.token_ids)
        if arrival.fate == "cancel":
            engine.cancel(ids[0])
            cancelled.add(ids[0])
            expected.pop(ids[0])
        engine.release(ids[0])
    return expected, produced


def _request(seq_id: int, arrival: Arrival) -> SequenceRequest:
    return SequenceRequest(
        seq_id=seq_id,
        model=arrival.model,
        token_ids=pack_ids(arrival.prompt),
        sampling=SamplingParams(temperature=0.0, max_tokens=arrival.max_tokens),
        session_id=arrival.session,
        arrival_s=time.monotonic(),
    )
