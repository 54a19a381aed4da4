"""The figures of the control plane, taken on few users and a tiny model."""

from __future__ import annotations

import json

import pytest

from benchmarks import control_command
from benchmarks.cli import main, parser, records
from benchmarks.errors import BenchmarkError
from benchmarks.report import emit

MACHINE = {
    "cpu": "A processor", "cores": 2, "threads": 1, "load_1m": 0.1,
    "fp32_gflops": 200.0, "bf16_gflops": 40.0, "int8_gflops": 80.0, "read_gb_s": 18.0,
}  # fmt: skip


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_checks_are_counted_and_timed(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(control_command, "describe", lambda threads, device: MACHINE)
    small = ["--users", "100", "--projects", "10", "--rate", "100", "--seconds", "1"]
    assert main(["control", "--only", "checks", "--database", database, "--json", "--threads", "1", *small]) in (0, 1)
    record = json.loads(capsys.readouterr().out)
    assert record["database"] == database
    assert 50 < record["checks"] < 200
    assert 0 < record["p50_ms"] <= record["p99_ms"] and record["per_second"] > 0
    assert isinstance(record["ok"], bool)
    emit([record], as_table=True)
    assert database[:4] in capsys.readouterr().out  # the rest may stand on the next line


def test_chats_through_both_fronts_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(control_command, "describe", lambda threads, device: MACHINE)
    monkeypatch.setattr(control_command, "TINY_REQUESTS", 4)
    small = ["--n", "1,3", "--input", "4", "--output", "5", "--pairs", "1"]
    assert main(["control", "--only", "tiny", "--database", "sqlite", "--json", "--threads", "1", *small]) in (0, 1)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["n"], record["answers"], record["requests"]) for record in records] == [
        (1, "streamed", 8), (1, "whole", 8), (3, "streamed", 12), (3, "whole", 12),
    ]  # fmt: skip
    for record in records:
        assert all(record[name].keys() == {"control", "serve"} for name in ("requests_s", "out_tok_s", "p50_ms"))
        assert record["ratio_min"] <= record["ratio_median"] <= record["ratio_max"]
        assert record["cpu_ms"].keys() == {"control", "serve", "engine"}
        assert (record["added_first_ms"] is None) == (record["answers"] == "whole")
        assert (record["ok"] is None) == (record["n"] > 1)
    emit(records, as_table=True)
    assert "harmonia serve" in " ".join(capsys.readouterr().out.split())


def test_a_crowd_of_nobody_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="--users is 0"):
        list(records(parser().parse_args(["control", "--users", "0"])))
