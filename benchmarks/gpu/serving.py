"""Rows of serving: decode at several batch sizes, prefill, sessions, adapters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.driver import Driver
from benchmarks.gpu.job import Job, Prompts, Rows
from benchmarks.gpu.models import opened, path_of
from harmonia.config import EngineConfig, SchedulerConfig
from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.protocol.instances import AdapterSpec, SpawnSpec
from harmonia.protocol.sampling import SamplingParams

BASE = "base"
MAX_RUNNING = 256
CACHE_LEN = 262_144
MAX_SEQ_LEN = 8192
RANK = 16


@dataclass(frozen=True)
class Run:
    """One run of many requests at once."""

    wall_s: float
    tokens: list[list[int]]


def config_of(job: Job, precision: str = "bfloat16", *, invariant: bool = False) -> EngineConfig:
    """The engine's settings, those of its users except for the room that the work needs."""
    return EngineConfig(
        device=job.device,  # type: ignore[arg-type]
        precision=precision if job.device == "cuda" else "float32",  # type: ignore[arg-type]
        max_seq_len=MAX_SEQ_LEN if job.device == "cuda" else 512,
        scheduler=SchedulerConfig(max_running=MAX_RUNNING),
        invariant=invariant,
    )


def spec_of(job: Job) -> SpawnSpec:
    """The bare backbone with a cache for everything below."""
    return SpawnSpec(path="", kv_cache_len=CACHE_LEN if job.device == "cuda" else 16_384)


class Bench:
    """Requests to a runtime in this process."""

    def __init__(self, driver: Driver, job: Job) -> None:
        self.driver, self.job = driver, job
        self.engine = driver.engine(BASE)
        self.prompts = Prompts(self.engine.backbone.decoder.config)
        self._next_id = 1 << 20

    def start(self, prompts: Sequence[np.ndarray], num_output: int, models: Sequence[str] = (BASE,)) -> list[int]:
        """Hand requests over, models in turn: their ids."""
        sampling = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True)
        ids = list(range(self._next_id, self._next_id + len(prompts)))
        self._next_id += len(prompts)
        for index, (seq_id, prompt) in enumerate(zip(ids, prompts, strict=True)):
            self.driver.runtime.add(
                SequenceRequest(
                    seq_id=seq_id,
                    model=models[index % len(models)],
                    token_ids=pack_ids(prompt),
                    sampling=sampling,
                    arrival_s=time.monotonic(),
                )
            )
        return ids

    def run(self, prompts: Sequence[np.ndarray], num_output: int, models: Sequence[str] = (BASE,)) -> Run:
        """All at once, to the last token."""
        began = time.perf_counter()
        tokens: dict[int, list[int]] = {seq_id: [] for seq_id in self.start(prompts, num_output, models)}
        while self.engine.has_work:
            for output in self.driver.step():
                tokens[output.seq_id] += output.token_ids
        return Run(time.perf_counter() - began, list(tokens.values()))

    def warm_up(self, n: int, models: Sequence[str] = (BASE,)) -> None:
        """Let it make what it makes once for so many requests: kernels, graphs, buffers."""
        self.run(self.prompts.draw(min(n, 16), self.job.num_input), 2, models)
        self.run(self.prompts.draw(n, 16), 4, models)


def decode_rows(bench: Bench, rows: Rows, prefix: str, counts: Sequence[int]) -> None:
    """ITL and tokens a second at each number of requests."""
    job = bench.job
    for n in counts:
        with rows.trying(f"{prefix}/n={n}"):
            bench.warm_up(n)
            num_output = job.num_output(n)
            first = bench.run(bench.prompts.draw(n, job.num_input), 1)
            whole = bench.run(bench.prompts.draw(n, job.num_input), num_output)
            rows.add(
                f"{prefix}/n={n}",
                itl_ms=(whole.wall_s - first.wall_s) / (num_output - 1) * 1e3,
                tok_s=n * num_output / whole.wall_s,
                wall_s=whole.wall_s,
                first_s=first.wall_s,
            )


def prefill_row(bench: Bench, rows: Rows, prefix: str) -> None:
    """Long prompts, one token each."""
    n, size = (16, 4096) if not bench.job.is_tiny else (4, 64)
    key = f"{prefix}/prefill {n}x{size}"
    with rows.trying(key):
        bench.run(bench.prompts.draw(2, size), 1)
        wall_s = bench.run(bench.prompts.draw(n, size), 1).wall_s
        rows.add(key, tok_s=n * size / wall_s, wall_s=wall_s)


def session_rows(bench: Bench, rows: Rows, prefix: str) -> None:
    """64 conversations of four turns; each turn brings its whole history again."""
    n, first, more, num_output = (64, 1024, 256, 128) if not bench.job.is_tiny else (4, 32, 16, 5)
    with rows.trying(f"{prefix}/sessions"):
        bench.warm_up(n)
        histories = bench.prompts.draw(n, first)
        walls = {}
        for turn in range(1, 5):
            run = bench.run(histories, num_output)
            walls[f"turn {turn} s"] = run.wall_s
            news = bench.prompts.draw(n, more)
            histories = [
                np.concatenate((old, np.asarray(answer, np.int32), new))
                for old, answer, new in zip(histories, run.tokens, news, strict=True)
            ]
        rows.add(f"{prefix}/sessions", **walls)


def lora_rows(bench: Bench, rows: Rows, prefix: str) -> None:
    """64 requests on no, one and four adapters of every linear layer."""
    n, job = (64, bench.job) if not bench.job.is_tiny else (4, bench.job)
    names = [f"adapter {index}" for index in range(4)]
    with rows.trying(f"{prefix}/lora"):
        for index, name in enumerate(names):
            spec = SpawnSpec(
                path=path_of(bench.driver, BASE), use_adapter=True, adapter=AdapterSpec(rank=RANK, seed=index)
            )
            bench.driver.spawn(name, spec)
        for used in (0, 1, 4):
            models = names[:used] or [BASE]
            bench.warm_up(n, models)
            num_output = job.num_output(n)
            first = bench.run(bench.prompts.draw(n, job.num_input), 1, models)
            whole = bench.run(bench.prompts.draw(n, job.num_input), num_output, models)
            rows.add(
                f"{prefix}/lora {used} adapters",
                tok_s=n * num_output / whole.wall_s,
                itl_ms=(whole.wall_s - first.wall_s) / (num_output - 1) * 1e3,
                wall_s=whole.wall_s,
            )


def serving_stage(job: Job, rows: Rows, model: str) -> None:
    """Everything that one backbone in bf16 serves."""
    prefix = f"{model}/bf16"
    with opened(model, BASE, spec_of(job), config_of(job)) as driver:
        bench = Bench(driver, job)
        rows.say(f"{prefix}: loaded")
        if "serving" in job.groups:
            decode_rows(bench, rows, prefix, job.counts)
        if "prefill" in job.groups:
            prefill_row(bench, rows, prefix)
        if model != "0.6b":
            if "sessions" in job.groups:
                session_rows(bench, rows, prefix)
            if "lora" in job.groups:
                lora_rows(bench, rows, prefix)


def fp8_stage(job: Job, rows: Rows, model: str) -> None:
    """The backbone in 8 bits."""
    prefix = f"{model}/fp8"
    with rows.trying(prefix), opened(model, BASE, spec_of(job), config_of(job, "fp8")) as driver:
        bench = Bench(driver, job)
        rows.say(f"{prefix}: loaded")
        decode_rows(bench, rows, prefix, [n for n in job.counts if n != 8])
        prefill_row(bench, rows, prefix)


def invariant_stage(job: Job, rows: Rows, model: str) -> None:
    """Decode that does not depend on company, over plain decode of this very run."""
    prefix, counts = f"{model}/bf16", [n for n in job.counts if n in (1, 64)]
    missing = [n for n in counts if rows.figure(f"{prefix}/n={n}/itl_ms") is None]
    if missing:
        with opened(model, BASE, spec_of(job), config_of(job)) as driver:
            decode_rows(Bench(driver, job), rows, prefix, missing)
    with (
        rows.trying(f"{prefix}/invariant"),
        opened(model, BASE, spec_of(job), config_of(job, invariant=True)) as driver,
    ):
        decode_rows(Bench(driver, job), rows, f"{model}/invariant", counts)
        for n in counts:
            plain, own = (rows.figure(f"{model}/{kind}/n={n}/itl_ms") for kind in ("bf16", "invariant"))
            if plain and own:
                rows.add(f"{prefix}/invariant n={n}", **{"decode ratio": own / plain})
