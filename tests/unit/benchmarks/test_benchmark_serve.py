"""The record of one engine, and how records are written."""

import json

import pytest

from benchmarks.process import Loaded
from benchmarks.report import emit
from benchmarks.serve import serve_record
from benchmarks.work import Shape, Timing

MACHINE = {
    "cpu": "A processor", "cores": 2, "threads": 2, "load_1m": 0.1,
    "fp32_gflops": 200.0, "bf16_gflops": 40.0, "int8_gflops": 80.0, "read_gb_s": 18.0,
}  # fmt: skip
LOADED = Loaded(engine="vllm", engine_version="0.32.0", model="m", precision="float32", ready_s=60.0)
FIELDS = {
    "kind", "engine", "engine_version", "model", "precision", "n", "input", "output", "wall_s", "walls_s",
    "out_tok_s", "in_tok_s", "itl_ms", "first_token_wall", "ready_s", "other_cores", "machine",
}  # fmt: skip


def record(walls: list[float], num_output: int = 5) -> dict[str, object]:
    shape = Shape(n=2, num_input=10, num_output=num_output)
    timings = [Timing(shape=shape, wall_s=wall, first_token_wall=1.0, tokens=[]) for wall in walls]
    return serve_record(LOADED, timings, MACHINE)


def test_a_record_has_its_fields_and_carries_the_machine() -> None:
    assert set(record([3.0])) == FIELDS
    assert record([3.0])["machine"] == MACHINE


def test_a_record_holds_the_median_of_the_repeats() -> None:
    made = record([9.0, 3.0, 4.0])
    assert (made["wall_s"], made["out_tok_s"], made["itl_ms"]) == (4.0, 2.5, 750.0)
    assert made["walls_s"] == [9.0, 3.0, 4.0]


def test_a_prefill_has_no_inter_token_latency() -> None:
    assert record([1.0], num_output=1)["itl_ms"] is None


def test_json_lines_are_one_record_each(capsys: pytest.CaptureFixture[str]) -> None:
    emit([record([3.0]), record([4.0])], as_table=False)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["wall_s"] for line in lines] == [3.0, 4.0]


def test_a_table_names_engine_figures_and_machine(capsys: pytest.CaptureFixture[str]) -> None:
    emit([record([3.0])], as_table=True)
    out = capsys.readouterr().out
    assert all(text in out for text in ("vllm 0.32.0", "500", "A processor"))
