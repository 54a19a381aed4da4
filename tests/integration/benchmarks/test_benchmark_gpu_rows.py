"""The rows for one GPU, run on a CPU with a tiny model: every group works, whatever its figures are."""

import json
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.gpu.drafting import right_share

TINY = ["gpu", "--device", "cpu", "--model", "tiny", "--n", "1,4"]


def run(tmp_path: Path, *options: str) -> dict[str, dict[str, object]]:
    out = tmp_path / "rows.jsonl"
    assert main([*TINY, *options, "--out", str(out)]) == 0
    return {row["key"]: row for row in map(json.loads, out.read_text(encoding="utf-8").splitlines())}


def test_each_row_has_its_figures(tmp_path: Path) -> None:
    rows = run(tmp_path, "--only", "serving,prefill,sessions,lora,train")
    assert {"machine", "tiny/bf16/n=1", "tiny/bf16/n=4", "tiny/bf16/prefill 4x64", "tiny/bf16/sessions"} <= set(rows)
    assert set(rows["tiny/bf16/n=4"]) == {"key", "itl_ms", "tok_s", "wall_s", "first_s"}
    assert {"turn 1 s", "turn 4 s"} < set(rows["tiny/bf16/sessions"])
    assert all(rows[f"tiny/bf16/lora {used} adapters"]["tok_s"] for used in (0, 1, 4))
    assert rows["tiny/bf16/train 4x64"]["tok_s"]
    assert rows["tiny/bf16/train 2x128"]["layers_kept"] == 2


def test_drafts_propose_what_was_recorded_and_learn_what_a_model_says(tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "rows.jsonl"
    command = ["specdec", "--device", "cpu", "--model", "tiny", "--n", "1,4", "--out", str(out)]
    assert main([*command, "--accelerate", str(tiny)]) == 0
    rows = {row["key"]: row for row in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    for n in (1, 4):
        assert rows[f"tiny/bf16/specdec n={n} plain"]["tok_s"]
        for acceptance in (0.8, 0.7, 0.6, 0.0):
            row = rows[f"tiny/bf16/specdec n={n} acceptance {acceptance}"]
            assert row["ratio"] and (row["accepted"] == 0 or acceptance)
    assert rows["tiny/bf16/specdec divergence"]["differ"] == 0, "fp32"
    learned = rows[f"{tiny.stem}/specdec_alignment"]
    assert learned["tok_s"] and learned["plain_tok_s"]
    assert 0 <= learned["acceptance before"] <= 1 and 0 <= learned["acceptance after"] <= 1


def test_what_the_recipe_is_run_on_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["specdec", "--device", "cpu", "--model", "tiny", "--accelerate", "/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 0.8, 1.0])
def test_proposals_are_right_as_often_as_wished(acceptance: float) -> None:
    share = right_share(acceptance, 4)
    assert sum(share**place for place in range(1, 5)) / 4 == pytest.approx(acceptance, abs=1e-4)


def test_steps_are_traced(tmp_path: Path) -> None:
    texts = run(tmp_path, "--trace", "decode,train,specdec")
    assert "us/step" in str(texts["tiny/trace decode n=1"]["text"])
    assert "us/step" in str(texts["tiny/trace specdec n=1"]["text"])
    assert "2 of 2 layers kept" in str(texts["tiny/trace train"]["text"])
