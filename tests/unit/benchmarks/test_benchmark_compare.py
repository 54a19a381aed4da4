"""Ratios, agreement, and the records of a comparison."""

import pytest

from benchmarks.compare import Spread, agreement, compare_records, speeds, spread
from benchmarks.process import Loaded
from benchmarks.report import emit
from benchmarks.work import Shape, Timing

DECODE = Shape(n=2, num_input=10, num_output=5)
PREFILL = Shape(n=2, num_input=10, num_output=1)


def stand_in(engine: str) -> Loaded:
    return Loaded(engine=engine, engine_version="1", model="m", precision="float32", ready_s=1.0)


def timing(shape: Shape, wall_s: float, first: float = 1.0) -> Timing:
    return Timing(shape=shape, wall_s=wall_s, first_token_wall=first, tokens=[[1] * shape.num_output] * shape.n)


def test_spread_of_an_odd_and_an_even_number() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(low=1.0, median=2.0, high=3.0)
    assert spread([1.0, 2.0]).median == 1.5


def test_speeds_of_a_prefill_are_of_its_prompts() -> None:
    assert speeds(timing(PREFILL, 1.0)) == {"in_tok_s": 20.0}


def test_speeds_of_a_decode() -> None:
    assert speeds(timing(DECODE, 3.0)) == {"out_tok_s": pytest.approx(10 / 3), "in_tok_s": 20.0, "decode_tok_s": 4.0}


def test_speeds_leave_out_a_decode_lost_in_noise() -> None:
    assert "decode_tok_s" not in speeds(timing(DECODE, 0.9))


@pytest.mark.parametrize(("a", "b", "share"), [
    ([[1, 2, 3, 4]], [[1, 2, 3, 4]], 1.0),
    ([[1, 2, 3, 4]], [[1, 9, 3, 4]], 0.25),
    ([[1, 2], [5, 6]], [[1, 2], [7, 6]], 0.5),
])  # fmt: skip
def test_agreement_ends_where_answers_part(a: list[list[int]], b: list[list[int]], share: float) -> None:
    assert agreement(a, b) == share


def test_ratio_over_one_says_the_first_is_faster() -> None:
    pairs = [(timing(PREFILL, 1.0, first), timing(PREFILL, 1.0, 2.0)) for first in (1.0, 2.0, 4.0)]
    (record,) = compare_records(stand_in("harmonia"), stand_in("vllm"), pairs, {"cpu": "x"})
    assert (record["ratio_min"], record["ratio_median"], record["ratio_max"]) == (0.5, 1.0, 2.0)
    assert (record["a"]["engine"], record["b"]["engine"]) == ("harmonia", "vllm")
    assert record["metric"] == "in_tok_s"
    assert record["agreement"] == 1.0


def test_a_speed_that_one_pair_lacks_is_not_reported() -> None:
    pairs = [(timing(DECODE, 3.0), timing(DECODE, 3.0)), (timing(DECODE, 0.9), timing(DECODE, 3.0))]
    records = compare_records(stand_in("harmonia"), stand_in("vllm"), pairs, {})
    assert [r["metric"] for r in records] == ["out_tok_s", "in_tok_s"]


def test_a_table_names_both_engines_and_the_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(timing(PREFILL, 1.0, first), timing(PREFILL, 1.0, 2.0)) for first in (1.0, 1.6, 4.0)]
    machine = {"cpu": "A processor", "cores": 2, "threads": 2, "load_1m": 0.1}
    machine |= {"fp32_gflops": 200.0, "bf16_gflops": 40.0, "int8_gflops": 80.0, "read_gb_s": 18.0}
    emit(compare_records(stand_in("harmonia"), stand_in("vllm"), pairs, machine), as_table=True)
    out = capsys.readouterr().out
    assert all(text in out for text in ("A = harmonia 1", "B = vllm 1", "1.25", "0.5", "2", "A processor"))
