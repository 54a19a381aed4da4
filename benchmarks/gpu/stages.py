"""One process, stage after stage: what shares a loaded model is measured on it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu.drafting import DRAFTS, specdec_rows
from benchmarks.gpu.interleaving import interleave_rows
from benchmarks.gpu.job import Job, Rows
from benchmarks.gpu.models import release
from benchmarks.gpu.recipe import recipe_row
from benchmarks.gpu.serving import fp8_stage, invariant_stage, serving_stage
from benchmarks.gpu.startup import first_token
from benchmarks.gpu.table import MACHINE, machine, table, write_results
from benchmarks.gpu.trace import trace
from benchmarks.gpu.training import train_rows

SERVED = {"serving", "prefill", "sessions", "lora"}


def run(job: Job) -> int:
    """Every group or trace that was asked for; 1 if something could not be had."""
    rows = Rows(job.out)
    for path in job.merge:
        rows.merge(path)
    if not job.merge:
        rows.note(MACHINE, machine())
        for model in job.models:
            if job.traces:
                trace(job, rows, model)
            else:
                _measure(job, rows, model)
        if job.accelerate is not None:
            recipe_row(job, rows, Path(job.accelerate))
    if not job.traces:
        rows.say("\n" + table(rows))
    if job.write_results:
        write_results(rows)
    return int(bool(rows.failures()))


def _measure(job: Job, rows: Rows, model: str) -> None:
    if SERVED & set(job.groups):
        with rows.trying(f"{model}/serving"):
            serving_stage(job, rows, model)
    if "train" in job.groups:
        train_rows(job, rows, model)
    if "start" in job.groups:
        with rows.trying(f"{model}/bf16/start"):
            release()
            rows.add(f"{model}/bf16/start", **first_token(model, job.device))
    if model == "0.6b":
        return
    if "fp8" in job.groups:
        fp8_stage(job, rows, model)
    if "invariant" in job.groups:
        invariant_stage(job, rows, model)
    if "interleave" in job.groups:
        interleave_rows(job, rows, model)
    if "specdec" in job.groups and model in DRAFTS:
        specdec_rows(job, rows, model)
