"""The bytes that plans are made of are the bytes that are there."""

import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harmonia.kernels.lora import LoraRows
from harmonia.layers.linear import LoraPart, WeightFormat
from harmonia.models import load_decoder, open_model, sizes
from tests.unit.models.paged import PagedRunner
from tests.unit.models.tiny import FP32, reference_model

CPU = torch.device("cpu")
FORMATS = [FP32, WeightFormat(torch.bfloat16, CPU), WeightFormat(torch.float32, CPU, int8=True)]


class PeakMemory(TorchDispatchMode):
    """Bytes of the storages that were made inside and are still referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.older: set[int] = set()
        self.references: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in tensors_in((args, kwargs)):
            if storage_key(tensor) not in self.sizes:
                self.older.add(storage_key(tensor))
        result = function(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if storage_key(tensor) not in self.older:
                self.note(tensor)
        return result

    def note(self, tensor: torch.Tensor) -> None:
        key = storage_key(tensor)
        self.references[key] += 1
        self.sizes[key] = tensor.untyped_storage().nbytes()
        weakref.finalize(tensor, self.forget, key)
        self.peak = max(self.peak, sum(self.sizes.values()))

    def forget(self, key: int) -> None:
        self.references[key] -= 1
        if not self.references[key]:
            del self.sizes[key]


def tensors_in(tree: object) -> list[torch.Tensor]:
    leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [leaf for leaf in leaves if leaf.layout is torch.strided]


def storage_key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma3", "qwen3_moe-mixed"])
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    reference_model(request.param).save_pretrained(folder)
    return open_model(folder)


@pytest.mark.parametrize("fmt", FORMATS, ids=["float32", "bfloat16", "int8"])
def test_weights(source, fmt):
    loaded: dict[str, int] = {}
    for kind, storage in load_decoder(source, fmt).storages():
        loaded[kind] = loaded.get(kind, 0) + storage.num_bytes
    assert sizes.weight_bytes(source.config, fmt) == loaded


def test_tied_weights_count_once(tmp_path):
    reference_model("llama-tied-bias").save_pretrained(tmp_path)
    assert "head" not in sizes.weight_bytes(open_model(tmp_path).config, FP32)


def test_key_value_cache(source):
    runner = PagedRunner(load_decoder(source, FP32), num_sequences=1, max_len=40)
    allocated = sum(cache.k_NPGD.nbytes + cache.v_NPGD.nbytes for cache in runner.caches)
    assert sizes.kv_bytes_per_token(source.config, FP32) * 40 == allocated


def test_adapter_rows(source):
    decoder = load_decoder(source, FP32)
    arenas = [
        LoraPart(
            torch.empty(1, target.linear.num_in),
            torch.empty(1, target.linear.part(target.part).size),
            [LoraRows(0, 0, 0.0)],
        )
        for target in decoder.linears()
    ]
    assert sizes.lora_bytes_per_rank(source.config, FP32) == sum(a.a_RK.nbytes + a.b_RN.nbytes for a in arenas)


def test_activations_are_an_upper_bound_and_not_a_loose_one(source):
    runner = PagedRunner(load_decoder(source, FP32), num_sequences=1, max_len=120)
    with PeakMemory() as memory:
        runner.hidden({0: [1] * 120})
    planned = sizes.activation_bytes(source.config, FP32, 120)
    scratch = 2 * 120 * source.config.num_kv_heads * source.config.head_dim * 4 + 120 * 120 * 10
    assert memory.peak <= planned + scratch
    assert planned <= 3 * memory.peak


def test_limited_length_shrinks_the_position_tables(source):
    full, short = (sizes.weight_bytes(config, FP32)["rope"] for config in (source.config, source.limited(64).config))
    assert short * 2 == full
