"""How often do greedy answers depend on how many requests run at once? In plain precision, and in invariant mode."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.agreement import can_be_invariant
from benchmarks.driver import Driver
from benchmarks.machine import Record
from benchmarks.own import answer
from benchmarks.peers.channel import EngineError
from benchmarks.work import random_tokens
from harmonia.config import CacheConfig, EngineConfig
from harmonia.protocol.instances import SpawnSpec
from harmonia.protocol.sampling import SamplingParams

BASE = "base"
Answers = list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to compare on."""

    model: str
    precision: str
    device: str
    threads: int
    rank: int
    num_prompts: int
    num_input: int
    num_output: int
    sizes: list[int]
    """Requests at once; the others are compared with the first."""
    seed: int
    vocab: int


def run(**fields: object) -> list[Record]:
    """A record for each number of requests at once, plain and in invariant mode."""
    job = Job(**fields)  # type: ignore[arg-type]  # a job that came through JSON
    rng = random.Random(job.seed)
    prompts = [random_tokens(rng, job.num_input, job.vocab) for _ in range(job.num_prompts)]
    records = []
    for invariant in (False, True) if can_be_invariant(job.device, job.precision) else (False,):
        driver = Driver(
            EngineConfig(
                device=job.device,  # type: ignore[arg-type]  # the plan refuses what it does not know
                precision=job.precision,  # type: ignore[arg-type]
                invariant=invariant,
                num_threads=job.threads,
                cache=CacheConfig(prefix_caching=False),
            )
        )
        length = max(job.sizes) * (job.num_input + job.num_output + 16)
        driver.spawn(BASE, SpawnSpec(path=job.model, kv_cache_len=length))
        answers = {size: answers_of(driver, prompts, size, job.num_output) for size in job.sizes}
        first, *others = job.sizes
        records += [divergence_record(job, size, answers[first], answers[size], invariant=invariant) for size in others]
    return records


def answers_of(driver: Driver, prompts: Sequence[list[int]], size: int, num_output: int) -> Answers:
    """Greedy tokens of each prompt, so many prompts at once."""
    sampling = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True)
    answers: dict[int, list[int]] = {}
    for start in range(0, len(prompts), size):
        waiting = {driver.add(BASE, prompt, sampling=sampling) for prompt in prompts[start : start + size]}
        answers |= {seq_id: [] for seq_id in sorted(waiting)}
        while waiting:
            for output in driver.step():
                answers[output.seq_id] += output.token_ids
                if output.finish_reason is not None:
                    waiting.discard(output.seq_id)
    return list(answers.values())


def divergence_record(job: Job, size: int, few: Answers, many: Answers, *, invariant: bool) -> Record:
    """Return how many answers part, and how often a next token differs after the same tokens."""
    shared = [_num_shared(a, b) for a, b in zip(few, many, strict=True)]
    if any(len(tokens) != job.num_output for tokens in (*few, *many)):
        raise EngineError(f"some answers do not have {job.num_output} tokens")
    num_parted = sum(count < job.num_output for count in shared)
    compared = sum(min(count + 1, job.num_output) for count in shared)
    return {
        "precision": job.precision,
        "device": job.device,
        "mode": "invariant" if invariant else "plain",
        "sizes": f"{job.sizes[0]} and {size}",
        "num_prompts": job.num_prompts,
        "num_output": job.num_output,
        "parted": num_parted / job.num_prompts,
        "parted_per_1000_tokens": 1e3 * num_parted / compared,
        "shared_tokens": sum(shared) / len(shared),
        "bound": 0.0 if invariant else None,
        "ok": num_parted == 0 if invariant else None,
    }


def _num_shared(a: list[int], b: list[int]) -> int:
    return next((index for index, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), len(a))


if __name__ == "__main__":
    answer(run)
