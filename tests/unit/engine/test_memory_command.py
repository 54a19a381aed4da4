"""`harmonia plan`: tables for people, JSON for programs, and an exit code for scripts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harmonia.cli.main import app


def plan(model: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", str(model), "--device", "cpu", *options], env={"COLUMNS": "120"})
    return result.exit_code, result.output


def test_training_an_adapter_says_what_is_recomputed(smollm2: Path) -> None:
    code, shown = plan(smollm2, "--train", "--max-batch-size", "256", "--kv-cache-len", "2048")
    assert code == 0
    assert "training: optimizer" in shown
    assert "Training keeps the activations of 30 of 30 layers" in shown


def test_invariant_mode_is_part_of_what_is_planned(smollm2: Path) -> None:
    code, shown = plan(smollm2, "--invariant", "--kv-cache-len", "2048")
    assert (code, "on cpu, float32, invariant" in shown) == (0, True)
    code, shown = plan(smollm2, "--invariant", "--dtype", "bf16")
    assert (code, "take float32 or int8 (--precision), or leave it out" in " ".join(shown.split())) == (1, True)


def test_json_has_every_figure(smollm2: Path) -> None:
    code, shown = plan(smollm2, "--train", "--max-batch-size", "256", "--full", "--kv-cache-len", "2048", "--json")
    made = json.loads(shown)
    assert (code, made["fits"], made["num_kept"], made["num_layers"], made["max_batch_size"]) == (0, True, 30, 30, 256)
    assert sum(row["num_bytes"] for row in made["rows"]) == made["total_bytes"]


def test_what_does_not_fit_ends_with_1_and_a_smaller_size_that_fits(smollm2: Path) -> None:
    code, shown = plan(smollm2, "--train", "--max-batch-size", "100000000", "--kv-cache-len", "2048")
    assert code == 1
    assert re.search(r"max_batch_size \d+ fits", " ".join(shown.split()))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--train",), "--train needs --max-batch-size"),
        (("--full",), "add --train"),
        (("--train", "--max-batch-size", "64", "--full", "--targets", "q_proj"), "leave out one"),
        (("--train", "--max-batch-size", "64", "--targets", "q_porj"), "no projection 'q_porj'"),
    ],
)
def test_options_that_make_no_sense_are_named(smollm2: Path, options: tuple[str, ...], named: str) -> None:
    code, shown = plan(smollm2, *options)
    assert code == 1
    assert named in " ".join(shown.split())
