"""The plan of training: needs add up, more asks for more, and what does not fit names levers that do."""

from __future__ import annotations

import re

import msgspec
import pytest

from harmonia.config import CacheConfig, EngineConfig
from harmonia.engine.memory import InstanceNeed, Plan, make_plan
from harmonia.engine.needs import TeacherSize, training_need
from harmonia.errors import InsufficientMemoryError, InvalidRequestError
from harmonia.models.sizes import lora_parameters, num_parameters
from tests.unit.engine.tiny import MODEL

GIB = 2**30
BIG = msgspec.structs.replace(
    MODEL,
    num_layers=16,
    hidden_size=1024,
    num_heads=16,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=4096,
    vocab_size=32_000,
    max_seq_len=8192,
    windows=(0,) * 16,
)


def plan(*needs: InstanceNeed, available: int = 16 * GIB, kv_cache_len: int | None = 4096, **kwargs: object) -> Plan:
    config = EngineConfig(device="cpu", max_adapters=0, cache=CacheConfig(kv_cache_len=kv_cache_len), **kwargs)
    return make_plan("m", BIG, config, available=available, needs=needs)


def lora(tokens: int = 2048, rank: int = 16, targets: tuple[str, ...] = ()) -> InstanceNeed:
    return training_need(tokens, rank, targets)


def rows(made: Plan) -> dict[str, int]:
    return {row.name: row.num_bytes for row in made.memory.rows}


def test_more_tokens_and_more_rank_take_more() -> None:
    by_tokens = [plan(lora(tokens)).memory.total_bytes for tokens in (256, 1024, 4096, 8192)]
    by_rank = [plan(lora(rank=rank)).memory.total_bytes for rank in (1, 8, 64)]
    assert by_tokens == sorted(set(by_tokens))
    assert by_rank == sorted(set(by_rank))


def test_all_layers_are_kept_where_there_is_room_and_fewer_where_there_is_less() -> None:
    assert plan(lora()).num_kept == BIG.num_layers
    whole = plan(lora()).memory.total_bytes
    plans = [plan(lora(), available=share * whole // 40).memory for share in range(16, 41)]
    kept = [(made.num_kept, made.num_whole) for made in plans]
    assert kept == sorted(kept)
    assert kept[0] == (0, 0)
    assert kept[-1] == (BIG.num_layers, BIG.num_layers)
    assert len(set(kept)) > 10
    assert all(num_whole == 0 for num_kept, num_whole in kept if num_kept < BIG.num_layers)


def test_a_plan_that_keeps_fewer_layers_fits_into_what_there_is() -> None:
    whole = plan(lora()).memory.total_bytes
    for share in range(14, 20):
        made = plan(lora(), available=share * whole // 20)
        assert made.memory.fits
        assert made.memory.total_bytes > made.memory.available_bytes * 0.93, "room for another layer is left over"


def test_keeping_layers_comes_before_a_large_cache_and_after_a_useful_one() -> None:
    least = plan(lora(), kv_cache_len=2048).memory.total_bytes
    made = plan(lora(), available=least, kv_cache_len=None)
    assert (made.num_kept, made.memory.kv_cache_len) == (BIG.num_layers, 2048)
    roomy = plan(lora(), available=2 * least, kv_cache_len=None)
    assert (roomy.num_kept, roomy.memory.kv_cache_len > 10_000) == (BIG.num_layers, True)
    tight = plan(lora(), available=least - 200_000_000, kv_cache_len=None)
    assert tight.memory.num_whole < tight.num_kept
    assert 2048 <= tight.memory.kv_cache_len < 8192, "what no further layer fits into"


def test_needs_add_up_and_activations_are_reserved_once() -> None:
    one, other = lora(2048, 16), msgspec.structs.replace(lora(1024, 8), name="other")
    single, both = rows(plan(one)), rows(plan(one, other))
    assert both["training activations"] == single["training activations"]
    assert both["adapters"] * 32 == single["adapters"] * 48
    assert both["other: optimizer"] == 8 * lora_parameters(BIG) * 16
    assert plan(one, other).max_batch_size == 2048


def test_full_weights_have_gradients_and_moments_and_are_their_own_masters() -> None:
    full = rows(plan(training_need(1024, 0)))
    assert full["training: optimizer"] == 12 * num_parameters(BIG)


def test_a_snapshot_of_all_weights_is_a_copy() -> None:
    frozen = InstanceNeed(name="old", mode="inference", full=True)
    made = rows(plan(frozen))
    assert made["old: weights"] == sum(size for name, size in made.items() if name.startswith("weights"))


def test_a_teacher_takes_room_for_a_full_micro_batch_and_several_share_it() -> None:
    def learning(*teachers: TeacherSize) -> Plan:
        return plan(msgspec.structs.replace(lora(2048), teachers=teachers), available=64 * GIB)

    fmt = plan(lora()).fmt
    small, large = (
        TeacherSize(msgspec.structs.replace(BIG, hidden_size=size, intermediate_size=4 * size), fmt)
        for size in (2048, 8192)
    )
    none, one, both = learning(), learning(small), learning(small, large)
    assert one.memory.total_bytes - none.memory.total_bytes >= small.states_bytes(2048)
    assert both.memory.total_bytes > one.memory.total_bytes
    assert both.memory.rows == learning(large).memory.rows, "the passes of several follow each other"
    assert {row.name for row in one.memory.rows} == {row.name for row in none.memory.rows}


def test_fewer_targets_take_less() -> None:
    few, all_of_them = (rows(plan(lora(targets=targets))) for targets in (("q_proj", "v_proj"), ()))
    assert few["training: optimizer"] < 0.3 * all_of_them["training: optimizer"]
    assert few["training activations"] < all_of_them["training activations"]


def test_the_cache_of_a_loaded_backbone_stays_or_grows() -> None:
    def blocks(kv_cache_len: int | None) -> int:
        config = EngineConfig(device="cpu", cache=CacheConfig(kv_cache_len=kv_cache_len))
        return make_plan("m", BIG, config, available=16 * GIB, needs=(lora(),), num_blocks=200).num_blocks

    assert [blocks(length) for length in (None, 1600, 6400)] == [200, 200, 400]


@pytest.mark.parametrize("need", [lora(8192, 64), training_need(4096, 0)], ids=["adapter", "full"])
@pytest.mark.parametrize("available", [1.8, 2.4])
def test_levers_really_fit(need: InstanceNeed, available: float) -> None:
    room = int(available * GIB)
    with pytest.raises(InsufficientMemoryError) as refused:
        plan(need, available=room, kv_cache_len=20_000).memory.require()
    levers = refused.value.details["levers"]
    for lever in levers:
        number = re.search(r"(\d+)(?: \(--[a-z-]+\))? fits", lever)
        if lever.startswith("max_batch_size"):
            changed = msgspec.structs.replace(need, max_batch_size=int(number[1]))
            assert plan(changed, available=room, kv_cache_len=20_000).memory.fits
        elif lever.startswith("adapter rank"):
            changed = msgspec.structs.replace(need, rank=int(number[1]))
            assert plan(changed, available=room, kv_cache_len=20_000).memory.fits
        elif lever.startswith("--kv-cache-len"):
            assert plan(need, available=room, kv_cache_len=int(number[1])).memory.fits
        elif lever.startswith("--precision int8") and lever.endswith("fits"):
            assert plan(need, available=room, kv_cache_len=20_000, precision="int8").memory.fits
    if need.full:
        assert any("an adapter of rank 16" in lever for lever in levers)
        assert not any("int8" in lever for lever in levers), "rounded weights cannot train"


@pytest.mark.parametrize(
    ("need", "named"),
    [
        (InstanceNeed(name="a", mode="training", full=True), "max_batch_size is None"),
        (lora(0), "max_batch_size is 0"),
        (lora(targets=("q_porj",)), "no projection 'q_porj'; it has"),
        (lora(rank=-1), "rank -1"),
    ],
)
def test_impossible_needs_are_named(need: InstanceNeed, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(named)):
        plan(need)
