"""Serving and training on one backbone, each alone and both at once."""

from __future__ import annotations

from benchmarks.gpu.job import Job, Rows
from benchmarks.gpu.models import opened, path_of
from benchmarks.gpu.serving import BASE, RANK, config_of
from benchmarks.interleave import Bench, measured
from benchmarks.interleave import Job as Work
from harmonia.protocol.instances import SpawnSpec


def interleave_rows(job: Job, rows: Rows, model: str) -> None:
    """`benchmarks interleave` with this model's shape: 8 requests that generate, micro-batches of 4096 tokens."""
    prefix = f"{model}/bf16/interleave"
    config, size = config_of(job), 1024 if not job.is_tiny else 64
    room = 9 * (job.num_input + 256) * 2
    spec = SpawnSpec(path="", kv_cache_len=max(room, 4 * size))
    with rows.trying(prefix), opened(model, BASE, spec, config) as driver:
        work = Work(
            model=path_of(driver, BASE),
            precision=config.precision,
            device=job.device,
            threads=1,
            n=8,
            num_input=job.num_input,
            num_output=256 if not job.is_tiny else 16,
            max_batch_size=4 * size,
            rank=RANK,
            shortest=size // 2,
            longest=size,
            seconds=2.0 if job.quick or job.is_tiny else 4.0,
            pairs=2,
            seed=0,
            vocab=400 if job.is_tiny else 150_000,
            warm_up_s=2.0 if job.is_tiny else 12.0,
        )
        records = {str(record["phase"]): record for record in measured(work, Bench(work, driver))}
        for phase, record in records.items():
            names = ("itl_ms", "itl_p95_ms", "itl_max_ms", "ttft_ms", "ttft_max_ms", "train_tok_s")
            rows.add(f"{prefix} {phase}", **{name: record[name] for name in names if record[name] is not None})
        both = records["both"]
        rows.add(prefix, **{"itl ratio": both["ratio_median"], "worst gap ms": both["itl_max_ms"]})
