"""What precisions cost: the text, the windows, and the verdict; and one run on a tiny model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cli, perplexity
from benchmarks.cli import main, parser
from benchmarks.errors import BenchmarkError
from benchmarks.report import emit
from tests.integration.tiny_model import make_model

MACHINE = {
    "cpu": "A processor", "cores": 2, "threads": 1, "load_1m": 0.1,
    "fp32_gflops": 200.0, "bf16_gflops": 40.0, "int8_gflops": 80.0, "read_gb_s": 18.0,
}  # fmt: skip


def test_the_text_is_long_and_always_the_same() -> None:
    assert perplexity.text() == perplexity.text()
    assert len(perplexity.text()) > 300_000


def test_windows_follow_each_other_and_hold_what_was_asked_for() -> None:
    windows = perplexity.cut(list(range(1000)), 27, 10)
    assert windows == [list(range(start, start + 10)) for start in (0, 10, 20)]
    with pytest.raises(BenchmarkError, match="1000 tokens, too few for --tokens 1000"):
        perplexity.cut(list(range(1000)), 1000, 10)


@pytest.mark.parametrize(("count", "excess", "ok"), [(20_000, 0.009, True), (20_000, 0.02, False), (500, 0.02, None)])
def test_fp8_is_judged_where_there_is_enough_to_tell(count: int, excess: float, ok: bool | None) -> None:
    before = [perplexity.perplexity_record("float32", "cpu", np.full(count, -2.0), [])]
    assert (before[0]["perplexity"], before[0]["ok"]) == (pytest.approx(math.exp(2)), None)
    record = perplexity.perplexity_record("fp8", "cpu", np.full(count, -2.0 - math.log1p(excess)), before)
    assert record["difference"] == pytest.approx(excess)
    assert record["ok"] is ok
    assert perplexity.perplexity_record("int8", "cpu", np.full(count, -3.0), before)["ok"] is None


def test_a_tiny_model_is_scored_in_every_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "describe", lambda threads, device: MACHINE)
    model = str(make_model(tmp_path))
    arguments = ["--model", model, "--precisions", "float32,fp8", "--tokens", "60", "--window", "32", "--threads", "1"]
    assert main(["perplexity", *arguments, "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["precision"], second["precision"]) == ("float32", "fp8")
    assert first["num_tokens"] == second["num_tokens"] == 62
    assert 1 < first["perplexity"] and 0 < abs(second["difference"]) < 0.5
    emit([first, second], as_table=True)
    assert "Perplexity of" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--window", "1"], ["--tokens", "0"], ["--model", "no/such/model"]])
def test_what_cannot_be_used_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["perplexity", *arguments]) == 2
    assert arguments[1] in capsys.readouterr().err


def test_precisions_are_known() -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["perplexity", "--precisions", "fp7"])
