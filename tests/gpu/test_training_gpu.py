"""Training on a GPU: the same steps as on the CPU in fp32, and learning, serving and resuming in bf16."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from harmonia.engine.requests import SaveRequest
from tests.unit.engine.runtime import CONFIG, Bench, Reply, sample
from tests.unit.models.tiny import VOCAB, reference_model

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]

RANDOM = np.random.default_rng(11)
SAMPLES = [sample(RANDOM.integers(1, VOCAB, length).tolist()) for length in (9, 30, 4, 17, 25, 12, 50, 3)]
TEXT = list(range(1, 20))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    reference_model("llama").save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def make(device: str, precision: str) -> Bench:
    return Bench(msgspec.structs.replace(CONFIG, device=device, precision=precision))


def saved(bench: Bench, name: str, folder: Path) -> dict[str, np.ndarray]:
    reply = Reply()
    bench.runtime.save(SaveRequest(instance=name, folder=str(folder)), reply)
    bench.wait(reply)
    return load_file(next(folder.glob("*model.safetensors")))


@pytest.mark.parametrize("rank", [4, 0])
def test_steps_equal_those_of_the_cpu(model: str, tmp_path: Path, rank: int) -> None:
    results = []
    for device in ("cpu", "cuda"):
        bench = make(device, "float32")
        bench.spawn("one", model, rank=rank, max_batch_size=64)
        bench.train("one", SAMPLES)
        metrics = bench.optim_step("one", lr=1e-3)["metrics"]
        results.append((metrics, saved(bench, "one", tmp_path / device)))
    (cpu, left), (gpu, right) = results
    assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-5)
    assert gpu["grad_norm"] == pytest.approx(cpu["grad_norm"], rel=1e-4)
    for name, values in left.items():
        np.testing.assert_allclose(values, right[name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_serves_and_clones(model: str, precision: str, rank: int) -> None:
    bench = make("cuda", precision)
    bench.spawn("pupil", model, rank=rank, max_batch_size=64)
    reply = Reply()
    bench.runtime.clone("pupil", "reference", reply)
    bench.wait(reply)
    before = bench.score("reference", TEXT)
    losses = []
    for _ in range(25):
        replies = bench.begin_training("pupil", [sample(TEXT)])
        bench.begin("reference", TEXT[:5])  # serving beside it
        bench.wait(*replies)
        losses.append(bench.optim_step("pupil", lr=2e-2 if rank else 3e-3)["metrics"]["loss"])
    assert losses[-1] < losses[0] / 5
    assert bench.generate("pupil", TEXT[:5]) == TEXT[5:11]
    bench.drain()
    np.testing.assert_array_equal(bench.score("reference", TEXT), before)


def test_memory_does_not_grow(model: str) -> None:
    bench = make("cuda", "bfloat16")
    bench.spawn("pupil", model, rank=4, max_batch_size=128)
    peaks = []
    for _ in range(4):
        torch.cuda.reset_peak_memory_stats()
        for _ in range(5):
            bench.train("pupil", SAMPLES)
            bench.optim_step("pupil", lr=1e-4)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[-1] <= peaks[1]
