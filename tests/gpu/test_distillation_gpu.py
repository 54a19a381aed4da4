"""Distillation on a GPU: the same steps as on the CPU in fp32, learning beside an answer in bf16, and no waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from harmonia.layers.linear import WeightFormat
from harmonia.protocol.losses import Distillation, Divergence
from harmonia.train.distillation import Teacher
from harmonia.train.microbatch import Item, MicroBatch
from harmonia.train.samples import Sample
from harmonia.train.weights import TrainedBackbone
from tests.gpu.waiting import no_waits
from tests.unit.engine.runtime import CONFIG, Bench, sample
from tests.unit.models.tiny import VOCAB, load, reference_model

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"), pytest.mark.timeout(600)]

RANDOM = np.random.default_rng(11)
SAMPLES = [sample(RANDOM.integers(1, VOCAB, length).tolist()) for length in (9, 30, 4, 17, 25, 12, 50, 3)]

Model = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folders: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            reference_model(family).save_pretrained(folders[family])
        return folders[family]

    return make


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def make(device: str, precision: str, model: Model, rank: int) -> Bench:
    bench = Bench(msgspec.structs.replace(CONFIG, device=device, precision=precision))
    bench.spawn("teacher", str(model("qwen3")))
    bench.spawn("student", str(model("llama")), rank=rank, max_batch_size=64)
    return bench


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "total_variation"])
def test_steps_equal_those_of_the_cpu(model: Model, rank: int, divergence: Divergence) -> None:
    told = []
    for device in ("cpu", "cuda"):
        bench = make(device, "float32", model, rank)
        bench.train("student", SAMPLES, Distillation(teacher="teacher", divergence=divergence))
        told.append(bench.optim_step("student", lr=1e-3)["metrics"])
    cpu, gpu = told
    for name in ("loss", "agreement", "overlap"):
        assert gpu[name] == pytest.approx(cpu[name], rel=1e-4)
    assert gpu["grad_norm"] == pytest.approx(cpu["grad_norm"], rel=1e-3)


def test_a_student_comes_to_agree_beside_an_answer(model: Model) -> None:
    bench = make("cuda", "bfloat16", model, 0)
    alone = bench.generate("teacher", [5, 9, 2, 7], 60)
    seq_id, told = bench.begin("teacher", [5, 9, 2, 7], 60), []
    for _ in range(15):
        bench.train("student", SAMPLES, Distillation(teacher="teacher"))
        told.append(bench.optim_step("student", lr=5e-3)["metrics"])
    bench.drain()
    assert bench.tokens(seq_id) == alone
    assert told[-1]["agreement"] > told[0]["agreement"] + 0.2


def test_a_lesson_waits_for_nothing(model: Model) -> None:
    fmt = WeightFormat(torch.bfloat16, torch.device("cuda"))
    student, teacher = load(model("llama"), fmt), Teacher(load(model("qwen3"), fmt), None)
    TrainedBackbone(student, None)
    text = Sample.from_weighted(RANDOM.integers(1, VOCAB, 40), [0.0] + [1.0] * 39)
    items = [Item((text,), Distillation(teacher="teacher"), None, None, lambda *_: None, teacher) for _ in range(3)]
    for _ in MicroBatch(student, items, num_kept=2).run():
        pass
    with no_waits():
        for _ in MicroBatch(student, items, num_kept=2).run():
            pass
