"""Training through the runtime: what users rely on, whatever else runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from harmonia.engine import instances
from harmonia.engine.requests import SampleArrays, SaveRequest, TrainRequest, pack_ids
from harmonia.engine.training import Call
from harmonia.errors import (
    AdapterLimitError,
    InsufficientMemoryError,
    InvalidRequestError,
    SequenceTooLongError,
    UnknownModelError,
)
from harmonia.protocol.instances import AdapterSpec, SpawnSpec
from harmonia.protocol.losses import Dpo, LanguageModelling, Mse, MsePerToken, Ranking, Tangents
from tests.unit.engine.runtime import Bench, Reply, sample
from tests.unit.models.tiny import VOCAB, reference_model

RANDOM = np.random.default_rng(11)
SAMPLES = [sample(RANDOM.integers(1, VOCAB, length).tolist()) for length in (9, 30, 4, 17, 25, 12, 50, 3)]
PROMPT = [5, 9, 2, 7]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    reference_model("llama").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def save(bench: Bench, name: str, folder: Path, *, inference_only: bool = True) -> Path:
    reply = Reply()
    bench.runtime.save(SaveRequest(instance=name, folder=str(folder), inference_only=inference_only), reply)
    bench.wait(reply)
    return folder


def load(bench: Bench, name: str, folder: Path) -> dict[str, object]:
    reply = Reply()
    bench.runtime.load_weights(name, str(folder), reply)
    return bench.wait(reply)[0]


def adapter(bench: Bench, name: str, folder: Path) -> dict[str, np.ndarray]:
    return load_file(save(bench, name, folder) / "adapter_model.safetensors")


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray], *, atol: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name, values in left.items():
        np.testing.assert_allclose(values, right[name], atol=atol, rtol=0, err_msg=name)


def test_an_adapter_learns_and_what_learned_answers(bench: Bench, model: str) -> None:
    text = list(range(1, 20))
    bench.spawn("base", model)
    bench.spawn("pupil", model, rank=4)
    before = bench.generate("base", text[:5])

    for _ in range(12):
        bench.train("pupil", [sample(text)])
        bench.optim_step("pupil", lr=2e-2)

    assert bench.generate("pupil", text[:5]) == text[5:11]
    assert bench.generate("base", text[:5]) == before


@pytest.mark.parametrize("rank", [4, 0])
def test_calls_in_any_order_or_company_give_the_same_step(model: str, tmp_path: Path, rank: int) -> None:
    weights = []
    for run, order in enumerate([SAMPLES, SAMPLES[::-1]]):
        bench = Bench()
        bench.spawn("other", model, rank=2, seed=5)
        bench.spawn("one", model, rank=rank, max_batch_size=64)
        company = bench.begin_training("other", SAMPLES[:3]) if run else []
        if run:
            bench.train("one", order)  # packed together, with another's
        else:
            for entry in order:
                bench.train("one", [entry])  # each alone
        bench.wait(*company)
        metrics = bench.optim_step("one", lr=1e-3)["metrics"]
        assert metrics["num_samples"] == len(SAMPLES)
        name = "adapter_model" if rank else "model"
        weights.append((metrics, load_file(save(bench, "one", tmp_path / str(run)) / f"{name}.safetensors")))

    (first, left), (second, right) = weights
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-5)
    # Adam's first step moves each weight by the learning rate in the direction of its gradient.
    assert_equal(left, right, atol=1e-4)


def test_a_call_costs_the_same_however_many_wait(bench: Bench, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing looks at the first ones only, or 6,000 would keep it busy for longer than their products take."""
    looks = 0
    num_tokens = Call.num_tokens.fget

    def counted(call: Call) -> int:
        nonlocal looks
        looks += 1
        return int(num_tokens(call))  # type: ignore[misc]

    monkeypatch.setattr(Call, "num_tokens", property(counted))
    bench.spawn("a", model, rank=2)
    per_call = []
    for count in (40, 640):
        looks = 0
        replies = bench.begin_training("a", [SAMPLES[0]] * count)
        bench.drain()
        assert all(reply.value is not None for reply in replies)
        per_call.append(looks / count)
    assert per_call[1] < 1.5 * per_call[0]


def test_adapters_that_train_together_equal_each_alone(model: str, tmp_path: Path) -> None:
    together = Bench()
    for name, rank in (("a", 2), ("b", 8)):
        together.spawn(name, model, rank=rank, seed=rank)
    for _ in range(3):
        together.wait(*together.begin_training("a", SAMPLES[:4]), *together.begin_training("b", SAMPLES[4:]))
        together.optim_step("a", lr=1e-3)
        together.optim_step("b", lr=1e-3)
    for name, rank, samples in (("a", 2, SAMPLES[:4]), ("b", 8, SAMPLES[4:])):
        alone = Bench()
        alone.spawn(name, model, rank=rank, seed=rank)
        for _ in range(3):
            alone.train(name, samples)
            alone.optim_step(name, lr=1e-3)
        left, right = adapter(together, name, tmp_path / f"t{name}"), adapter(alone, name, tmp_path / name)
        assert_equal(left, right, atol=2e-4)


@pytest.mark.parametrize("rank", [4, 0])
def test_a_resumed_run_is_bit_equal(model: str, tmp_path: Path, rank: int) -> None:
    def steps(bench: Bench, samples: list[SampleArrays]) -> list[object]:
        metrics = []
        for entry in samples:
            bench.train("run", [entry])
            metrics.append(bench.optim_step("run", lr=3e-3, wd=0.1))
        return metrics

    whole = Bench()
    whole.spawn("run", model, rank=rank, max_batch_size=64)
    steps(whole, SAMPLES[:4])
    save(whole, "run", tmp_path / "half", inference_only=False)
    expected = steps(whole, SAMPLES[4:])

    resumed = Bench()
    resumed.spawn("run", model, rank=rank, seed=99, max_batch_size=64)
    assert load(resumed, "run", tmp_path / "half")["optim_step"] == 4
    found = steps(resumed, SAMPLES[4:])

    assert [item["metrics"] for item in found] == [item["metrics"] for item in expected]
    left, right = (save(bench, "run", tmp_path / name) for name, bench in (("w", whole), ("r", resumed)))
    file = "adapter_model.safetensors" if rank else "model.safetensors"
    assert_equal(load_file(left / file), load_file(right / file))


def test_clones_are_frozen_and_live_views_are_not(bench: Bench, model: str) -> None:
    text = list(range(1, 20))
    bench.spawn("full", model, max_batch_size=64)
    bench.spawn("lora", model, rank=4)
    for name in ("full", "lora"):
        reply = Reply()
        bench.runtime.clone(name, f"{name}-reference", reply)
        bench.wait(reply)
        before = bench.score(name, text)
        np.testing.assert_allclose(bench.score(f"{name}-reference", text), before, atol=1e-5)
        bench.train(name, [sample(text)])
        bench.optim_step(name)
        np.testing.assert_allclose(bench.score(f"{name}-reference", text), before, atol=1e-5)
        assert np.abs(bench.score(name, text) - before).max() > 1e-2


def test_full_weights_wait_for_sequences_in_flight(bench: Bench, model: str) -> None:
    bench.spawn("full", model, max_batch_size=64)
    first = bench.begin("full", PROMPT, max_tokens=30)
    for _ in range(3):
        bench.step()
    bench.train("full", SAMPLES[:1])
    version = bench.optim_step("full")["version"]
    second = bench.begin("full", PROMPT, max_tokens=5)
    bench.drain()
    assert version == 1
    assert bench.versions(first) == {0} and len(bench.tokens(first)) == 30
    assert bench.versions(second) == {1}


def test_a_third_version_waits_for_the_first(bench: Bench, model: str) -> None:
    bench.spawn("lora", model, rank=2)
    seq_id = bench.begin("lora", PROMPT, max_tokens=60)
    for _ in range(2):
        bench.step()
    for _ in range(3):
        bench.train("lora", SAMPLES[:1])
        bench.optim_step("lora")
    assert bench.versions(seq_id) == {0}
    assert len(bench.tokens(seq_id)) == 60, "the second update had to wait for it"


@pytest.mark.parametrize(
    ("loss", "scalar"), [(Dpo(reference_positive=-9.0, reference_negative=-8.0, beta=0.3), False), (Ranking(), True)]
)
def test_a_pair_may_exceed_a_micro_batch(model: str, tmp_path: Path, loss: Dpo | Ranking, scalar: bool) -> None:
    results = []
    for size in (128, 64):  # 50 + 30 tokens
        bench = Bench()
        bench.spawn("pair", model, rank=4, max_batch_size=size, scalar_head=scalar)
        if scalar:  # away from zero first, where both sides are alike
            bench.train("pair", [SAMPLES[0]], Mse(target=1.0))
            bench.optim_step("pair")
        reply = Reply()
        bench.runtime.train(TrainRequest(instance="pair", sides=(SAMPLES[6], SAMPLES[1]), loss=loss), reply)
        bench.wait(reply)
        results.append(bench.optim_step("pair")["metrics"])
    together, apart = results
    assert apart["num_samples"] == 1
    assert apart["loss"] == pytest.approx(together["loss"], rel=1e-5)
    assert apart["grad_norm"] == pytest.approx(together["grad_norm"], rel=1e-4)


def test_a_scoring_model_trains_and_scores(bench: Bench, model: str, tmp_path: Path) -> None:
    text = list(range(1, 20))
    bench.spawn("critic", model, rank=4, scalar_head=True)
    assert bench.score("critic", text, scalar=True).tolist() == [0.0] * 18
    for _ in range(60):
        bench.train("critic", [sample(text)], MsePerToken(targets=(0.5,) * 18))
        bench.optim_step("critic", lr=1e-2)
    scores = bench.score("critic", text, scalar=True)
    np.testing.assert_allclose(scores, 0.5, atol=0.1)

    folder = save(bench, "critic", tmp_path / "critic")
    bench.spawn("again", str(folder))
    np.testing.assert_allclose(bench.score("again", text, scalar=True), scores, atol=1e-6)
    with pytest.raises(InvalidRequestError, match="scoring model"):
        bench.begin("critic", PROMPT)


def test_a_sample_without_advantage_counts(bench: Bench, model: str) -> None:
    bench.spawn("one", model, rank=2)
    ids = list(range(1, 10))
    flat = SampleArrays(token_ids=pack_ids(tuple(ids[:-1])), targets=pack_ids(tuple(ids[1:])))
    bench.train("one", [flat], Tangents(tangents=(0.0,) * 8))
    metrics = bench.optim_step("one")["metrics"]
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0 and metrics["num_samples"] == 1


def test_nan_stops_a_step_or_is_skipped(bench: Bench, model: str) -> None:
    ids = list(range(1, 10))
    bad = SampleArrays(token_ids=pack_ids(tuple(ids[:-1])), targets=pack_ids(tuple(ids[1:])))
    bench.spawn("one", model, rank=2)
    bench.spawn("two", model, rank=2)
    before = bench.score("one", ids)
    others = bench.begin_training("two", SAMPLES[:2])
    bench.train("one", [bad], Tangents(tangents=(float("nan"),) * 8))
    bench.wait(*others)
    with pytest.raises(InvalidRequestError, match="skip_nan_gradients=True"):
        bench.optim_step("one")
    assert bench.optim_step("two")["metrics"]["grad_norm"] > 0, "the other in the batch is unharmed"
    bench.train("one", [bad], Tangents(tangents=(float("nan"),) * 8))
    skipped = bench.optim_step("one", skip_nan_gradients=True)
    assert skipped["metrics"]["skipped"] == 1 and skipped["version"] == 0
    np.testing.assert_array_equal(bench.score("one", ids), before)
    bench.train("one", SAMPLES[:1])
    assert bench.optim_step("one")["version"] == 1


def test_bad_calls_name_what_is_wrong_and_harm_nobody(bench: Bench, model: str) -> None:
    bench.spawn("base", model)
    bench.spawn("one", model, rank=2, max_batch_size=32)
    good = bench.begin_training("one", SAMPLES[:1])
    for call, error, says in [
        (lambda: bench.begin_training("one", [SAMPLES[6]]), SequenceTooLongError, "50 tokens.*max_batch_size.*32"),
        (lambda: bench.begin_training("one", [sample([1, 2], [1.0, 1.0])]), InvalidRequestError, "position 0"),
        (lambda: bench.begin_training("one", [sample([1, 2], [0.0])]), InvalidRequestError, "1 values for 2 tokens"),
        (lambda: bench.begin_training("one", [sample([1, VOCAB])]), InvalidRequestError, "outside the vocabulary"),
        (lambda: bench.begin_training("one", SAMPLES[:1], Mse(target=0)), InvalidRequestError, "into_scoring_model"),
        (lambda: bench.begin_training("base", SAMPLES[:1]), InvalidRequestError, "spawn_train"),
        (lambda: bench.begin_training("nobody", SAMPLES[:1]), UnknownModelError, "'nobody'.*'base'"),
        (lambda: bench.spawn("one", model), InvalidRequestError, "'one' is taken"),
        (lambda: bench.spawn("x", model, mode="training"), InvalidRequestError, "max_batch_size"),
        (lambda: bench.spawn("x", model, rank=2, adapter=AdapterSpec(rank=1000)), InvalidRequestError, "rank"),
        (lambda: bench.spawn("x", model, rank=2, adapter=AdapterSpec(targets=("w",))), InvalidRequestError, "'w'"),
        (lambda: bench.spawn("x", model, rank=2, max_batch_size=10**9), InsufficientMemoryError, "max.batch.size"),
        (lambda: bench.optim_step("one", lr=float("nan")), InvalidRequestError, "lr must be"),
    ]:
        with pytest.raises(error, match=says):
            call()
    bench.wait(*good)
    assert bench.optim_step("one")["metrics"]["num_samples"] == 1
    with pytest.raises(InvalidRequestError, match="without a train"):
        bench.optim_step("one")


def test_the_fifth_adapter_is_refused(bench: Bench, model: str) -> None:
    for name in "abcd":
        bench.spawn(name, model, rank=1)
    with pytest.raises(AdapterLimitError, match="limit of 4"):
        bench.spawn("e", model, rank=1)
    reply = Reply()
    bench.runtime.clone("a", "snapshot", reply)
    bench.wait(reply)  # snapshots are planned apart
    bench.runtime.dealloc("b")
    bench.spawn("e", model, rank=1)


def test_an_adapter_is_an_adapter(bench: Bench, model: str, tmp_path: Path) -> None:
    bench.spawn("one", model, rank=2)
    folder = str(save(bench, "one", tmp_path / "one"))
    with pytest.raises(InvalidRequestError, match="with_adapter"):
        bench.spawn("whole", folder, mode="training", max_batch_size=32, use_adapter=False)
    spawned = bench.spawn("again", folder, mode="training", max_batch_size=32)
    assert spawned["instance"]["is_adapter"] and spawned["base"] == model


def test_deallocating_frees_a_backbone_and_fails_what_waits(bench: Bench, model: str) -> None:
    bench.spawn("one", model, rank=2)
    waiting = bench.begin_training("one", SAMPLES)
    seq_id = bench.begin("one", PROMPT, max_tokens=50)
    bench.step()
    bench.runtime.dealloc("one")
    bench.drain()
    assert all(reply.is_there for reply in waiting) and any(reply.error for reply in waiting)
    assert bench.runtime.describe().models == ()
    with pytest.raises(UnknownModelError):
        bench.begin("one", PROMPT)
    assert seq_id


def test_language_losses_need_a_weighted_token(bench: Bench, model: str) -> None:
    bench.spawn("one", model, rank=2)
    with pytest.raises(InvalidRequestError, match="weights none of them"):
        bench.begin_training("one", [sample([1, 2, 3], [0.0, 0.0, 0.0])], LanguageModelling())


def test_two_spawns_share_one_load(bench: Bench, model: str) -> None:
    replies = [Reply(), Reply()]
    for name, reply in zip(("a", "b"), replies, strict=True):
        bench.runtime.spawn(name, SpawnSpec(path=model), reply, lambda _: None)
    bench.wait(*replies)
    assert bench.runtime.stats().gauges["cache_blocks"] == 128
    with pytest.raises(InvalidRequestError, match="taken"):
        bench.spawn("b", model)


def test_an_explicit_cache_grows_the_shared_one(bench: Bench, model: str) -> None:
    bench.spawn("a", model)
    first = bench.generate("a", PROMPT)
    bench.spawn("b", model, kv_cache_len=4096)
    assert bench.runtime.stats().gauges["cache_blocks"] == 256
    assert bench.generate("b", PROMPT) == first


def test_an_answer_that_nobody_reads_does_not_stop_training(
    bench: Bench, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "_MAX_PAUSE_S", 0.05)
    bench.spawn("lora", model, rank=2)
    paused = bench.begin("lora", PROMPT, max_tokens=60)
    bench.step()
    bench.runtime.hold(paused)
    for _ in range(3):
        bench.train("lora", SAMPLES[:1])
        bench.optim_step("lora")
    bench.drain()
    error = bench.outputs[paused][-1].error
    assert error is not None and "paused" in error.message
