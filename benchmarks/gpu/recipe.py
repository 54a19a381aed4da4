"""What the recipe `specdec_alignment` reaches on a real model, from which it cuts a draft: by the public command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.errors import BenchmarkError
from benchmarks.gpu.job import Job, Rows
from harmonia.cli.demo_prompts import NUM_PROMPTS, make_prompts
from harmonia.client.recipe.journal_state import METRICS_FILE
from harmonia.models.source import open_model

RECIPE = "specdec_alignment"
LAYERS_SHARE = 7
"""Of so many layers the draft keeps one: four of SmolLM2's thirty."""
ANSWER_TOKENS = 64
EPOCHS = 3
_TINY_PROMPTS, _TINY_STEPS, _TINY_TOKENS = 4, 1, 4
_ACCEPTANCE, _DRAFTED, _PLAIN = "val/acceptance_rate", "val/tokens_per_s", "val/plain_tokens_per_s"


def recipe_row(job: Job, rows: Rows, model: Path) -> None:
    """Acceptance on held-out prompts before and after, and tokens/s of one answer at a time with and without."""
    key = f"{model.stem}/{RECIPE}"
    with rows.trying(key), TemporaryDirectory() as folder:
        began = time.perf_counter()
        records = _metrics(job, model, Path(folder))
        before, after = (record[_ACCEPTANCE] for record in records if _ACCEPTANCE in record)
        drafted, plain = records[-1][_DRAFTED], records[-1][_PLAIN]
        figures = {"acceptance before": before, "acceptance after": after, "ratio": drafted / plain}
        rows.add(key, **figures, tok_s=drafted, plain_tok_s=plain, wall_s=time.perf_counter() - began)


def _metrics(job: Job, model: Path, folder: Path) -> list[dict[str, float]]:
    """Run the recipe as a user does; what it recorded. BenchmarkError with its last words if it fails."""
    dataset = folder / "prompts.jsonl"
    prompts = make_prompts(_TINY_PROMPTS if job.is_tiny else NUM_PROMPTS).learned
    dataset.write_text("".join(f"{json.dumps(_line(prompt))}\n" for prompt in prompts), encoding="utf-8")
    parameters = {
        "target-model": model,
        "draft-model": f"layers:{max(1, open_model(model).config.num_layers // LAYERS_SHARE)}",
        "dataset": dataset,
        "max-answer-tokens": _TINY_TOKENS if job.is_tiny else ANSWER_TOKENS,
        **({"steps": _TINY_STEPS} if job.is_tiny else {"epochs": EPOCHS}),
    }
    options = {"device": job.device, "registry": folder / "registry", "job-dir": folder / "job"}
    command = [sys.executable, "-m", "harmonia.cli", "run", RECIPE]
    command += [word for name, value in {**options, **parameters}.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the recipe ended with status {done.returncode}: {done.stderr[-400:].strip()}")
    lines = (folder / "job" / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    return [record["metrics"] for record in map(json.loads, lines) if _ACCEPTANCE in record["metrics"]]


def _line(prompt: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": prompt}]}
