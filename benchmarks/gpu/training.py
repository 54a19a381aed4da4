"""Rows of training: steps of LoRA on the 8B shape and of all weights on the 0.6B shape, as the peer takes them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import msgspec
import torch

from benchmarks.driver import Driver
from benchmarks.gpu.job import Job, Prompts, Rows
from benchmarks.gpu.models import opened, release
from benchmarks.gpu.serving import RANK, config_of
from harmonia.protocol.instances import AdapterSpec, SpawnSpec

NAME = "learner"
SHAPES = ((4, 2048), (2, 8192))
MAX_GB = {("8b", 0): 40.0, ("8b", 1): 75.0}
"""The goals for memory; the plan recomputes what does not fit. Others take what the card has."""


class TrainBench:
    """One instance in training and the samples of its steps."""

    def __init__(self, driver: Driver, job: Job, n: int, size: int) -> None:
        self.driver, self.job, self.n, self.size = driver, job, n, size
        self.prompts = Prompts(driver.engine(NAME).backbone.decoder.config)

    @property
    def num_tokens(self) -> int:
        """Of one step."""
        return self.n * self.size

    @property
    def title(self) -> str:
        """What it trains, and how many layers keep their activations."""
        plan = self.driver.engine(NAME).plan
        return f"{self.n} x {self.size}, {plan.num_kept} of {plan.memory.num_layers} layers kept"

    def step(self) -> float:
        """Samples, backward passes and one optimizer step: seconds."""
        samples = self.prompts.draw(self.n, self.size)
        began = time.perf_counter()
        pending = [self.driver.train(NAME, sample) for sample in samples]
        pending.append(self.driver.optim_step(NAME, lr=1e-5))
        self.driver.finish(*pending)
        return time.perf_counter() - began


@contextmanager
def train_job(job: Job, model: str, which: int) -> Iterator[TrainBench]:
    """The instance of one of `SHAPES`, loaded."""
    n, size = _shape(job, which)
    config = msgspec.structs.replace(config_of(job), max_seq_len=size)
    limit = MAX_GB.get((model, which))
    if limit is not None and job.device == "cuda":
        release()
        free = torch.cuda.mem_get_info()[0]
        fraction = min(config.memory_fraction, limit * 1e9 / free)
        config = msgspec.structs.replace(config, memory_fraction=fraction)
    spec = SpawnSpec(
        path="",
        mode="training",
        max_batch_size=job.micro_batch or n * size,
        use_adapter=model == "8b" or (model == "tiny" and which == 0),
        adapter=AdapterSpec(rank=RANK),
        kv_cache_len=size,
    )
    with opened(model, NAME, spec, config) as driver:
        yield TrainBench(driver, job, n, size)


def _shape(job: Job, which: int) -> tuple[int, int]:
    return ((4, 64), (2, 128))[which] if job.is_tiny else SHAPES[which]


def train_rows(job: Job, rows: Rows, model: str) -> None:
    """Six steps of each shape, as the peer takes them; the first two warm up."""
    for which in range(len(SHAPES)):
        n, size = _shape(job, which)
        key = f"{model}/bf16/train {n}x{size}"
        if job.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with rows.trying(key), train_job(job, model, which) as bench:
            walls = [bench.step() for _ in range(4 if job.quick else 6)]
            wall_s = median(walls[2:])
            plan = bench.driver.engine(NAME).plan
            figures = {"tok_s": bench.num_tokens / wall_s, "step_s": wall_s, "first_step_s": walls[0]}
            if job.device == "cuda":
                figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
                figures["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
            figures |= {"planned_gb": plan.memory.total_bytes / 1e9, "layers_kept": float(plan.num_kept)}
            rows.add(key, **figures)
