"""Models in fp8 through the runtime: planned, served, and under adapters that train."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from harmonia.engine import memory
from harmonia.engine.memory import make_plan
from harmonia.engine.requests import SaveRequest
from harmonia.errors import InsufficientMemoryError, InvalidRequestError
from harmonia.kernels.fp8_weight import Tile, dequantise, quantise
from harmonia.models import open_model
from tests.unit.engine.runtime import CONFIG, Bench, Reply, sample
from tests.unit.engine.test_memory import BIG, GIB, config
from tests.unit.models.tiny import VOCAB, reference_model

FP8 = msgspec.structs.replace(CONFIG, precision="fp8")
TEXT = list(range(1, 20))
RANDOM = np.random.default_rng(3)
SAMPLES = [sample(RANDOM.integers(1, VOCAB, length).tolist()) for length in (9, 30, 17, 25)]
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(a checkpoint in fp8 with blocks, the same weights written out in fp32)."""
    root = tmp_path_factory.mktemp("models")
    reference_model("llama").save_pretrained(root / "dense")
    stored = load_tensors(root / "dense/model.safetensors")
    written = dict(stored)
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        tile = Tile(128, 128)
        values, scale = quantise(stored[name], tile)
        stored[name], stored[f"{name}_scale_inv"] = values, scale
        written[name] = dequantise(values, scale, tile)
    (root / "fp8").mkdir()
    save_file(stored, root / "fp8/model.safetensors")
    save_file(written, root / "dense/model.safetensors")
    values = json.loads((root / "dense/config.json").read_text()) | {"quantization_config": BLOCKS}
    (root / "fp8/config.json").write_text(json.dumps(values))
    return str(root / "fp8"), str(root / "dense")


def adapter(bench: Bench, name: str, folder: Path) -> dict[str, np.ndarray]:
    reply = Reply()
    bench.runtime.save(SaveRequest(instance=name, folder=str(folder), inference_only=True), reply)
    bench.wait(reply)
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("which", [0, 1], ids=["read as it is", "rounded on load"])
def test_an_adapter_learns_and_what_learned_answers(folders: tuple[str, str], which: int) -> None:
    bench = Bench(FP8)
    bench.spawn("base", folders[which])
    bench.spawn("pupil", folders[which], rank=4)
    before = bench.generate("base", TEXT[:5])
    for _ in range(12):
        bench.train("pupil", [sample(TEXT)])
        bench.optim_step("pupil", lr=2e-2)
    assert bench.generate("pupil", TEXT[:5]) == TEXT[5:11]
    assert bench.generate("base", TEXT[:5]) == before


def test_what_trains_is_what_serves(folders: tuple[str, str]) -> None:
    """The loss of a sample is that of its scores, and decoding one token at a time sees the same model."""
    bench = Bench(FP8)
    bench.spawn("pupil", folders[0], rank=4)
    for _ in range(3):
        bench.train("pupil", SAMPLES)
        bench.optim_step("pupil", lr=1e-2)
    answer = bench.generate("pupil", TEXT[:5], max_tokens=8)
    seq_id = bench.begin("pupil", TEXT[:5], 8, logprobs=0)
    bench.drain()
    decoded = [float(str(score.logprob)) for output in bench.outputs[seq_id] for score in output.scores]
    scored = bench.score("pupil", TEXT[:5] + answer, first=4)
    bench.train("pupil", [sample(TEXT[:5] + answer, [0.0] * 5 + [1.0] * 8)])
    loss = bench.optim_step("pupil", lr=0.0)["metrics"]["loss"]
    # A last digit that differs may round an input to its other neighbour.
    assert decoded == pytest.approx(scored.tolist(), abs=0.02)
    assert loss == pytest.approx(-float(scored.sum()), abs=0.05)


def test_adapters_train_as_on_the_same_weights_unrounded(folders: tuple[str, str], tmp_path: Path) -> None:
    """Activations are rounded, by up to 6 %, and nothing else differs: the first steps go the same way."""
    moved = []
    for name, path, settings in (("fp8", folders[0], FP8), ("dense", folders[1], CONFIG)):
        bench = Bench(settings)
        bench.spawn("one", path, rank=4, seed=1)
        bench.train("one", SAMPLES)
        moved.append((bench.optim_step("one", lr=1e-3)["metrics"], adapter(bench, "one", tmp_path / name)))
    (first, left), (second, right) = moved
    assert first["loss"] == pytest.approx(second["loss"], rel=0.03)
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=0.15)
    for name in (name for name in left if "lora_B" in name):  # zero before, and a step of the same size each
        assert float((np.sign(left[name]) == np.sign(right[name])).mean()) > 0.8, name


def test_an_fp8_checkpoint_is_written_out_for_other_precisions(folders: tuple[str, str]) -> None:
    scores = []
    for path, settings in ((folders[0], CONFIG), (folders[1], CONFIG)):
        bench = Bench(settings)
        bench.spawn("base", path)
        scores.append(bench.score("base", TEXT))
    np.testing.assert_array_equal(*scores)


def test_every_weight_trains_in_other_precisions_only(folders: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match=r"kept in fp8.*train an adapter"):
        Bench(FP8).spawn("full", folders[0], max_batch_size=64)
    Bench().spawn("full", folders[0], max_batch_size=64)


def test_the_table_counts_bytes_and_scales(folders: tuple[str, str]) -> None:
    plain, fp8 = (
        {
            row.name: row.num_bytes
            for row in make_plan("m", BIG, config(precision=precision), available=16 * GIB).memory.rows
        }
        for precision in ("float32", "fp8")
    )
    assert 0.25 < fp8["weights: layers"] / plain["weights: layers"] < 0.252
    assert fp8["weights: embedding"] == plain["weights: embedding"] and fp8["weights: head"] == plain["weights: head"]
    blocks = msgspec.structs.replace(BIG, fp8_side=128)
    rows = {row.name: row.num_bytes for row in make_plan("m", blocks, config(precision="fp8")).memory.rows}
    assert rows["weights: layers"] < fp8["weights: layers"]


def test_automatic_precision_follows_the_files_on_a_gpu(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_model(folders[0])
    assert make_plan("m", source, config()).precision == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu = msgspec.structs.replace(config(), device="cuda")
    assert make_plan("m", source, on_gpu, available=16 * GIB).fmt.fp8
    assert not make_plan("m", open_model(folders[1]), on_gpu, available=16 * GIB).fmt.fp8


def test_fp8_is_what_helps_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4 * GIB)
    with pytest.raises(InsufficientMemoryError, match=r"fp8 saves .* GiB"):
        make_plan("m", BIG, msgspec.structs.replace(config(), device="cuda")).memory.require()


def test_invariant_results_do_not_depend_on_company(folders: tuple[str, str]) -> None:
    bench = Bench(msgspec.structs.replace(FP8, invariant=True))
    bench.spawn("base", folders[0])
    alone = bench.score("base", TEXT)
    for length in (3, 9, 14):
        bench.begin("base", TEXT[:length], 4)
    np.testing.assert_array_equal(bench.score("base", TEXT), alone)
