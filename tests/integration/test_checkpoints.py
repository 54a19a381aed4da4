"""Checkpoints: a resumed optimizer has the same bits, a key always names a whole model, a full disk changes nothing."""

import multiprocessing
import os
import random
import resource
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest
import torch

from harmonia.errors import InvalidRequestError
from harmonia.layers.adapters import LoraMatrices
from harmonia.models import open_model
from harmonia.models.adaptive_info import read_info
from harmonia.models.atomic import read_whole
from harmonia.models.peft import read_saved_adapter
from harmonia.models.registry import ModelRegistry
from harmonia.train.checkpoint import AdapterToSave, ModelToSave, OptimizerState
from harmonia.train.optimizer_state import has_state, load_state
from tests.checkpoints import load_adapter, save_checkpoint
from tests.unit.models import tiny

NUM_KILLS = 12
KEY = "checkpoints/local/checkpoint-20"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.reference_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def registry(tmp_path):
    return ModelRegistry(tmp_path / "models")


def adapter_of(base: Path, value: float, rank: int = 3) -> AdapterToSave:
    decoder = tiny.load(base)
    matrices = {
        f"model.layers.{target.layer}.{target.path}": LoraMatrices(
            torch.full((rank, target.linear.num_in), value),
            torch.full((target.linear.part(target.part).size, rank), value),
            2.0,
        )
        for target in decoder.linears()
    }
    return AdapterToSave(matrices, str(base), open_model(base))


def awkward_state() -> dict[str, torch.Tensor]:
    """Every kind of fp32 bit pattern, and other types that need alignment."""
    bits = torch.randint(-(2**31), 2**31 - 1, (4097,), dtype=torch.int32)
    return {
        "master": bits.view(torch.float32),
        "exp_avg": torch.tensor([0.0, -0.0, 1e-45, float("inf"), float("nan")]),
        "half": torch.randn(7).bfloat16(),
        "seen": torch.tensor([True, False, True]),
        "step": torch.tensor(12345, dtype=torch.int64),
        "none": torch.zeros(0, 5),
        "rows": torch.randn(6, 4).T,
    }


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    a, b = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (left, right))
    return (left.dtype, left.shape) == (right.dtype, right.shape) and torch.equal(a, b)


def test_optimizer_state_bit_for_bit(base, registry):
    tensors, meta = awkward_state(), {"step": 17, "beta": 0.1 + 0.2, "names": ["a", "b"]}
    folder = save_checkpoint(registry, KEY, adapter_of(base, 1.0), OptimizerState(tensors, meta))
    loaded, loaded_meta = load_state(folder)
    assert loaded.keys() == tensors.keys()
    assert all(same_bits(loaded[name], tensor) for name, tensor in tensors.items())
    assert loaded_meta == meta


def test_saves_for_inference_have_no_state(base, registry):
    save_checkpoint(registry, KEY, adapter_of(base, 1.0), OptimizerState({"master": torch.ones(4)}, {"step": 1}))
    folder = save_checkpoint(registry, KEY, adapter_of(base, 2.0))
    assert not has_state(folder)
    with pytest.raises(InvalidRequestError, match="no optimizer state; save with inference_only=False"):
        load_state(folder)


def test_broken_state_is_named(base, registry):
    folder = save_checkpoint(registry, KEY, adapter_of(base, 1.0), OptimizerState({"master": torch.ones(4)}, {}))
    file = folder / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InvalidRequestError, match=r"optimizer\.safetensors is broken"):
        load_state(folder)
    (folder / "optimizer.json").write_text("[")
    with pytest.raises(InvalidRequestError, match=r"optimizer\.json is broken"):
        load_state(folder)


def test_adapters_come_back_through_the_registry(base, registry):
    decoder, saved = tiny.load(base), adapter_of(base, 0.5)
    save_checkpoint(registry, KEY, saved)
    loaded = load_adapter(registry, f"model_registry://{KEY}", decoder, "base", max_rank=8)
    assert loaded.matrices.keys() == saved.matrices.keys()
    assert registry.keys() == [KEY]


def test_full_models_with_their_state(base, registry):
    decoder, head = tiny.load(base), torch.randn(64)
    state = OptimizerState({"master": torch.randn(9)}, {"step": 3})
    folder = save_checkpoint(registry, "full", ModelToSave(decoder, open_model(base), head), state)
    assert open_model(registry.resolve("model_registry://full")).config == open_model(base).config
    assert read_info(folder).scalar_head
    assert has_state(folder)
    tiny.load(folder)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MiB; where it cannot be mounted, the test is skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_found_before_anything_is_written(base, small_disk):
    registry = ModelRegistry(small_disk)
    state = OptimizerState({"master": torch.zeros(1 << 20)}, {})
    with pytest.raises(
        InvalidRequestError, match=r"needs [\d,]+ bytes or more, and the disk has [\d,]+ free"
    ) as caught:
        save_checkpoint(registry, KEY, adapter_of(base, 1.0), state)
    assert caught.value.details["needed_bytes"] > caught.value.details["free_bytes"]
    assert not os.listdir(small_disk)


def test_a_disk_that_fills_while_saving(base, small_disk, monkeypatch):
    registry = ModelRegistry(small_disk)
    monkeypatch.setattr(AdapterToSave, "num_bytes", 0)
    save_checkpoint(registry, KEY, adapter_of(base, 1.0))
    with pytest.raises(
        InvalidRequestError, match=f"cannot save {registry.path_for(KEY)}: it needs .*Nothing was changed"
    ):
        save_checkpoint(registry, KEY, adapter_of(base, 2.0, rank=200))
    assert os.listdir(small_disk) == [registry.path_for(KEY).name]
    assert value_of(registry) == 1.0


def test_a_limit_on_file_sizes(base, registry):
    save_checkpoint(registry, KEY, adapter_of(base, 1.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(InvalidRequestError, match="cannot save"):
            save_checkpoint(registry, KEY, adapter_of(base, 2.0, rank=50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert value_of(registry) == 1.0
    assert registry.keys() == [KEY] and len(os.listdir(registry.folder)) == 1


def value_of(registry: ModelRegistry) -> float:
    """The one value that all tensors of an intact checkpoint hold."""

    def read(folder: Path) -> float:
        saved = read_saved_adapter(folder, max_rank=200)
        values = {
            float(x)
            for lora in saved.matrices.values()
            for side in (lora.a_rK, lora.b_Nr)
            for x in (side.min(), side.max())
        }
        if has_state(folder):
            tensors, meta = load_state(folder)
            values |= {float(tensors["master"].min()), float(tensors["master"].max()), meta["value"]}
        (value,) = values
        return value

    return read_whole(registry.resolve(f"model_registry://{KEY}"), read)


def save_forever(folder: Path, base: Path, value: float, last: Synchronized) -> None:
    """Save ever larger values under one key and tell the last that is safe."""
    torch.set_num_threads(1)
    adapter, master = adapter_of(base, value), torch.zeros(50_000)
    while True:
        value += 1
        for tensor in (master, *(side for lora in adapter.matrices.values() for side in (lora.a_rK, lora.b_Nr))):
            tensor.fill_(value)
        state = OptimizerState({"master": master}, {"value": value})
        save_checkpoint(ModelRegistry(folder), KEY, adapter, state)
        last.value = value


def test_killed_at_any_moment(base, registry):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.integration.test_checkpoints"])
    save_checkpoint(registry, KEY, adapter_of(base, 0.0))
    moments, known = random.Random(0), 0.0
    for _ in range(NUM_KILLS):
        last = processes.Value("d", known)
        saver = processes.Process(target=save_forever, args=(registry.folder, base, known, last))
        saver.start()
        while last.value == known:
            value_of(registry)
        stop = time.monotonic() + moments.uniform(0.0, 0.05)
        while time.monotonic() < stop:
            safe = last.value
            assert value_of(registry) >= safe
        saver.kill()
        saver.join()
        known = value_of(registry)
        assert known in (last.value, last.value + 1)
    save_checkpoint(registry, KEY, adapter_of(base, 0.0))
    assert os.listdir(registry.folder) == [registry.path_for(KEY).name]
