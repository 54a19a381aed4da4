"""How soon an adapter that was trained a moment ago answers: from the end of `optim_step` to the first token."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import IO

from benchmarks.conversation import SECONDS_TO_LEAVE, last_words
from benchmarks.driver import Driver
from benchmarks.machine import Record
from benchmarks.own import answer
from benchmarks.peers.channel import EngineError
from benchmarks.work import random_tokens
from harmonia.client import TrainingModel, get_client
from harmonia.config import EngineConfig
from harmonia.errors import HarmoniaError
from harmonia.protocol.instances import AdapterSpec, SpawnSpec
from harmonia.protocol.sampling import SamplingParams

NAME = "adapter"
BOUND_MS = 50.0
PROMPT_TOKENS, SAMPLE_TOKENS = 8, 64
CACHE_TOKENS = 1024
WARM_UP_ROUNDS = 3
LR = 1e-4
READY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train and how often to ask it."""

    model: str
    precision: str
    device: str
    threads: int
    rank: int
    repeat: int
    seed: int
    vocab: int
    ways: list[str]
    """`runtime`, `wire`."""


def run(**fields: object) -> list[Record]:
    """A record for each way."""
    job = Job(**fields)  # type: ignore[arg-type]  # a job that came through JSON
    measures = {"runtime": through_runtime, "wire": through_wire}
    return [switch_record(job, way, measures[way](job)[WARM_UP_ROUNDS:]) for way in job.ways]


def through_runtime(job: Job) -> list[float]:
    """Seconds of each round, the runtime called directly."""
    driver = Driver(
        EngineConfig(
            device=job.device,  # type: ignore[arg-type]  # the plan refuses what it does not know
            precision=job.precision,  # type: ignore[arg-type]
            num_threads=job.threads,
        )
    )
    spec = SpawnSpec(
        path=job.model,
        mode="training",
        max_batch_size=SAMPLE_TOKENS,
        use_adapter=True,
        adapter=AdapterSpec(rank=job.rank),
        kv_cache_len=CACHE_TOKENS,
    )
    driver.spawn(NAME, spec)
    sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    rng, seconds = random.Random(job.seed), list[float]()
    for _ in range(WARM_UP_ROUNDS + job.repeat):
        sample = driver.train(NAME, random_tokens(rng, SAMPLE_TOKENS, job.vocab))
        prompt = random_tokens(rng, PROMPT_TOKENS, job.vocab)
        stepped = driver.finish(sample, driver.optim_step(NAME, LR))[1]
        start = time.perf_counter()
        driver.add(NAME, prompt, sampling=sampling)
        while not (outputs := driver.step()):
            pass
        seconds.append(time.perf_counter() - start)
        if outputs[0].version != stepped["version"]:
            raise EngineError(f"version {outputs[0].version} answered after the step to {stepped['version']}")
    return seconds


def through_wire(job: Job) -> list[float]:
    """Seconds of each round, as a client of `harmonia worker` sees them."""
    with _worker(job) as address:
        try:
            return asyncio.run(_ask(job, address))
        except HarmoniaError as error:
            raise EngineError(error.message) from error


async def _ask(job: Job, address: str) -> list[float]:
    async with await get_client(address) as client:
        builder = client.model(job.model, kv_cache_len=CACHE_TOKENS).with_adapter(rank=job.rank)
        model: TrainingModel = await builder.spawn_train(NAME, max_batch_size=SAMPLE_TOKENS)
        asked = model.inf().temperature(0.0).max_gen_len(1)
        rng, seconds = random.Random(job.seed), list[float]()
        for _ in range(WARM_UP_ROUNDS + job.repeat):
            sample, prompt = random_tokens(rng, SAMPLE_TOKENS, job.vocab), random_tokens(rng, PROMPT_TOKENS, job.vocab)
            await model.train_tangents(sample[:-1], [], [1.0] * (len(sample) - 1), sample[1:])
            await model.optim_step(LR)
            start = time.perf_counter()
            # An answer of one token is whole when its first token is there.
            await asked.raw_token_create(prompt)
            seconds.append(time.perf_counter() - start)
    return seconds


@contextlib.contextmanager
def _worker(job: Job) -> Iterator[str]:
    """A bare worker; the address that it prints."""
    command = [sys.executable, "-m", "harmonia.cli", "worker", "--port", "0", "--device", job.device]
    command += ["--precision", job.precision, "--threads", str(job.threads)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, text=True)
        try:
            yield _address(popen, said)
        finally:
            popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(SECONDS_TO_LEAVE)
            popen.kill()
            popen.wait()


def _address(popen: subprocess.Popen[str], said: IO[str]) -> str:
    end = time.perf_counter() + READY_S
    while time.perf_counter() < end and popen.poll() is None:
        found = re.search(r"wss?://[\w.\[\]:]+:\d+", last_words(said))
        if found is not None:
            return found[0]
        time.sleep(0.05)
    raise EngineError(f"harmonia worker gave no address within {READY_S:g} s; it said:\n{last_words(said)}")


def switch_record(job: Job, way: str, seconds: list[float]) -> Record:
    """Return the median and the longest; the bound is for the longest, on a CPU or a GPU."""
    longest_ms = max(seconds) * 1e3
    return {
        "precision": job.precision,
        "device": job.device,
        "rank": job.rank,
        "way": way,
        "repeat": len(seconds),
        "first_token_ms": round(median(seconds) * 1e3, 2),
        "first_token_max_ms": round(longest_ms, 2),
        "bound_ms": BOUND_MS,
        "ok": longest_ms < BOUND_MS,
    }


if __name__ == "__main__":
    answer(run)
