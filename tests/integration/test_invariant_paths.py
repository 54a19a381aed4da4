"""Invariant mode: log-probabilities are the same bits in every batch, sampled, scored and trained."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.models.llama import LlamaConfig

from harmonia.config import EngineConfig
from harmonia.engine.memory import plan_memory
from harmonia.errors import InvalidRequestError
from tests.unit.engine.invariance import MODELS, InvariantBench, Told
from tests.unit.engine.runtime import Bench, Reply
from tests.unit.models.tiny import CONFIGS, reference_model

FAMILIES = ("llama-tied-bias", "qwen2-window", "qwen3", "qwen3_moe", "gemma3-linear-softcap")
CASES = [*((family, "float32") for family in FAMILIES), ("qwen2", "int8"), ("qwen3", "fp8")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> InvariantBench:
    family, precision = request.param
    folder = tmp_path_factory.mktemp(family)
    reference_model(family).save_pretrained(folder)
    return InvariantBench(folder, precision=precision)


# Prompts are built from few pieces, so that many share prefixes.
PIECES = ((1, 2, 3, 4, 5), (6, 7), (8,), tuple(range(20, 45)))
TOLD = st.builds(
    Told,
    model=st.sampled_from(MODELS),
    prompt=st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map(lambda parts: sum(parts, ())),
)


@given(
    all_told=st.lists(TOLD, min_size=1, max_size=7),
    steps_before=st.lists(st.integers(0, 5), min_size=7, max_size=7),
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from((0.0, 1.0)),
    num_kept=st.integers(0, 3),
    draw=st.data(),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_path_sees_the_same_bits(bench, all_told, steps_before, max_tokens, temperature, num_kept, draw):
    seq_ids = []
    for told, steps in zip(all_told, steps_before, strict=False):
        for _ in range(steps):
            bench.step()
        seq_ids.append(bench.ask(told, max_tokens, temperature=temperature, seed=len(told.prompt)))
    bench.drain()
    for told, seq_id in zip(all_told, seq_ids, strict=True):
        bench.collect(told, seq_id)
        assert len(told.sampled) == len(told.tokens) == max_tokens
    expected = [told.of_prompt + told.sampled for told in all_told]
    assert bench.scores(all_told) == expected

    order = draw.draw(st.permutations(range(len(all_told))))
    size = draw.draw(st.integers(1, len(order)))
    for start in range(0, len(order), size):
        pack = order[start : start + size]
        assert bench.trained([all_told[index] for index in pack], num_kept) == [expected[index] for index in pack]

    alone = Told(all_told[0].model, all_told[0].prompt)
    seq_id = bench.ask(alone, max_tokens, temperature=temperature, seed=len(alone.prompt))
    bench.drain()
    bench.collect(alone, seq_id)
    assert alone == all_told[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EngineConfig(device="cpu", precision="bfloat16"), "take float32 or int8"),
        (EngineConfig(device="cpu", precision="float16"), "take float32 or int8"),
    ],
)
def test_it_is_refused_where_it_is_impossible(tmp_path, config, message):
    reference_model("llama").save_pretrained(tmp_path)
    with pytest.raises(InvalidRequestError, match=message):
        plan_memory(str(tmp_path), msgspec.structs.replace(config, invariant=True))


def test_heads_of_an_odd_size_are_refused(tmp_path, monkeypatch):
    sizes = CONFIGS["llama"]().to_dict() | {"head_dim": 20}
    monkeypatch.setitem(CONFIGS, "odd", lambda: LlamaConfig(**sizes))
    reference_model("odd").save_pretrained(tmp_path)
    plan_memory(str(tmp_path), EngineConfig(device="cpu", precision="float32"))
    with pytest.raises(InvalidRequestError, match="this model's have 20"):
        plan_memory(str(tmp_path), EngineConfig(device="cpu", precision="float32", invariant=True))


def test_an_instance_may_differ_from_its_worker(tmp_path):
    reference_model("llama").save_pretrained(tmp_path)
    bench = Bench()
    assert not bench.spawn("plain", str(tmp_path))["plan"]["invariant"]
    assert bench.spawn("exact", str(tmp_path), invariant=True)["plan"]["invariant"]
    bench.spawn("judge", str(tmp_path), invariant=True)
    engines = [bench.runtime._lanes.of(name).engine for name in ("plain", "exact", "judge")]
    assert engines[0] is not engines[1] and engines[1] is engines[2]
    bench.spawn("pupil", str(tmp_path), invariant=True, max_batch_size=64, use_adapter=False)
    reply = Reply()
    bench.runtime.clone("pupil", "copy", reply)
    assert bench.wait(reply)[0]["plan"]["invariant"]
    assert bench.runtime._lanes.of("copy").engine.backbone.decoder.head_weight.invariant
