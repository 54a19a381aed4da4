"""The rows for one GPU, run on a CPU with a tiny model: every group works, whatever its figures are."""

import json
from pathlib import Path

from benchmarks.cli import main

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


def test_steps_are_traced(tmp_path: Path) -> None:
    texts = run(tmp_path, "--trace", "decode,train")
    assert "us/step" in str(texts["tiny/trace decode n=1"]["text"])
    assert "2 of 2 layers kept" in str(texts["tiny/trace train"]["text"])
