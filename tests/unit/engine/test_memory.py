"""The memory plan: what fits is told beforehand, and the levers that it names work."""

from __future__ import annotations

import re

import msgspec
import pytest

from harmonia.config import CacheConfig, EngineConfig
from harmonia.engine import memory
from harmonia.engine.memory import make_plan
from harmonia.errors import InsufficientMemoryError, InvalidRequestError
from tests.unit.engine.tiny import MODEL

GIB = 2**30
BIG = msgspec.structs.replace(
    MODEL,
    num_layers=16,
    hidden_size=2048,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=8192,
    vocab_size=32_000,
    max_seq_len=8192,
    windows=(0,) * 16,
)


@pytest.fixture(autouse=True)
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 GiB free, whatever this one has."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: 16 * GIB)


def config(**kwargs: object) -> EngineConfig:
    cache = CacheConfig(kv_cache_len=kwargs.pop("kv_cache_len", None))
    return EngineConfig(device="cpu", cache=cache, **kwargs)


def test_an_automatic_cache_fits() -> None:
    plan = make_plan("m", BIG, config())
    assert plan.memory.fits
    assert plan.memory.kv_cache_len == plan.num_blocks * 16
    assert plan.memory.total_bytes == sum(row.num_bytes for row in plan.memory.rows)
    assert plan.max_seq_len == BIG.max_seq_len


def test_the_automatic_cache_shrinks_with_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 9 * GIB)
    small = make_plan("m", msgspec.structs.replace(BIG, num_kv_heads=32, head_dim=64), config())
    assert small.memory.fits
    assert small.memory.kv_cache_len < CacheConfig().default_kv_cache_len


def test_what_was_asked_for_is_a_minimum() -> None:
    plan = make_plan("m", MODEL, config(kv_cache_len=1000))
    assert plan.memory.kv_cache_len == 1008, "rounded up to blocks"


def test_a_cache_too_large_is_refused_with_a_lever_that_works() -> None:
    plan = make_plan("m", BIG, config(kv_cache_len=50_000_000))
    with pytest.raises(InsufficientMemoryError) as refused:
        plan.memory.require()
    lever = re.search(r"kv_cache_len (\d+) fits", refused.value.message)
    assert lever
    assert make_plan("m", BIG, config(kv_cache_len=int(lever[1]))).memory.fits
    assert {row["name"] for row in refused.value.details["rows"]} >= {"key/value cache", "weights: layers"}
    assert refused.value.details["total_bytes"] > refused.value.details["available_bytes"]


def test_weights_too_large_name_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * GIB)
    with pytest.raises(InsufficientMemoryError, match=r"int8 saves .* GiB") as refused:
        make_plan("m", BIG, config()).memory.require()
    assert "smaller model" in refused.value.message


def test_int8_and_fewer_adapters_need_less() -> None:
    plain = make_plan("m", BIG, config()).memory
    int8 = make_plan("m", BIG, config(precision="int8")).memory
    bare = make_plan("m", BIG, config(max_adapters=0)).memory
    rows = [{row.name: row.num_bytes for row in plan.rows} for plan in (plain, int8, bare)]
    assert rows[1]["weights: layers"] < 0.3 * rows[0]["weights: layers"]
    assert rows[2]["adapters"] == 0 < rows[0]["adapters"]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"max_seq_len": 97}, "model's own limit"),
        ({"max_seq_len": 0}, "max_seq_len"),
        ({"max_seq_len": 64, "kv_cache_len": 32}, "kv_cache_len 32 cannot hold"),
        ({"kv_cache_len": 3}, "at least one block"),
        ({"kv_cache_len": -5}, "at least one block"),
        ({"precision": "int3"}, "precision is one of auto, float32, bfloat16, float16, int8, fp8; got .int3."),
    ],
)
def test_impossible_settings_are_named(bad: dict, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        make_plan("m", MODEL, config(**bad))


def test_a_small_cache_bounds_the_length_of_sequences() -> None:
    assert make_plan("m", MODEL, config(kv_cache_len=32)).max_seq_len == 32
