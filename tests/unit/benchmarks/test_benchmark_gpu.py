"""What is made of the figures of the rows for one GPU."""

import pytest

from benchmarks.cli import parser
from benchmarks.gpu.anchors import BY_KEY
from benchmarks.gpu.job import Rows
from benchmarks.gpu.table import everything, table
from benchmarks.gpu.trace import Kernel, one_layer, step_end, summary


def test_unknown_groups_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["gpu", "--only", "serving,speed"])
    assert "speed: there are serving, prefill" in capsys.readouterr().err


def test_figures_stand_beside_anchor_limit_and_goal() -> None:
    rows = Rows()
    rows.add("8b/bf16/n=64", itl_ms=8.0, tok_s=5700.0, wall_s=2.9)
    rows.failed("8b/fp8", RuntimeError("no such kernel"))
    lines = table(rows).splitlines()
    assert "| 8b/bf16/n=64/itl_ms | 8 ms | 9.38 | 7 | 8.2 | yes |" in lines
    assert "| 8b/bf16/n=64/tok_s | 5700 tok/s | 5207 |  | 5800 | **no** |" in lines
    assert lines[-1] == "- 8b/fp8: RuntimeError: no such kernel"
    assert everything(rows) == "- 8b/bf16/n=64: itl_ms 8, tok_s 5700, wall_s 2.9"


def test_a_row_that_worked_later_is_no_failure() -> None:
    rows = Rows()
    rows.failed("8b/bf16/n=1", RuntimeError("busy"))
    rows.add("8b/bf16/n=1", itl_ms=6.0)
    assert not rows.failures()
    assert rows.figure("8b/bf16/n=1/itl_ms") == 6.0


def test_goals_know_their_direction() -> None:
    assert BY_KEY["8b/bf16/n=1/itl_ms"].met(5.7)
    assert not BY_KEY["8b/bf16/n=1/itl_ms"].met(5.8)
    assert BY_KEY["8b/bf16/train 4x2048/tok_s"].met(13000)
    assert BY_KEY["8b/bf16/n=8/tok_s"].met(1.0) is None


def test_gaps_and_shares_are_those_of_the_device() -> None:
    step = [Kernel("norm", 0, 10), Kernel("product", 10, 40), Kernel("copy", 30, 50), Kernel("product", 60, 90)]
    lines = summary(step, 1)
    assert "0.090 ms a step, device busy 0.080 ms (88.9%), idle 0.010 ms in 1 gaps, 4 launches" in lines[0]
    assert lines[2].split() == ["2.0", "60.0", "75.0%", "30.00", "product"]
    assert lines[-1].split() == ["gap", "10.0", "us:", "copy", "->", "product"]


STEPS = ["embed", *["norm", "attention", "norm"] * 4, "head"] * 2


def names(lines: list[str]) -> list[str]:
    return [line.split()[-1] for line in lines[1:]]


def test_layers_and_ends_of_steps_are_told_in_order() -> None:
    kernels = [Kernel(name, 10 * index, 10 * index + 8) for index, name in enumerate(STEPS)]
    assert names(one_layer(kernels, 8)) == ["attention", "norm", "norm"]
    assert names(step_end(kernels, 8)) == ["attention", "norm", "head", "embed", "norm", "attention"]
    assert not one_layer(kernels, 7)
