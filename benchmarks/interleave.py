"""What training and serving cost each other: either alone, then both at once on one backbone."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

from benchmarks.compare import spread
from benchmarks.driver import Driver, Pending
from benchmarks.machine import Record
from benchmarks.own import answer
from benchmarks.work import random_tokens
from harmonia.config import EngineConfig
from harmonia.engine.requests import SequenceOutput
from harmonia.protocol.instances import AdapterSpec, SpawnSpec
from harmonia.protocol.sampling import SamplingParams

SERVED, TRAINED = "served", "trained"
BOUND = 1.2
SAMPLES_A_STEP = 16
ARRIVAL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Job:
    """The work: `n` sequences that generate without a break, samples that never run out."""

    model: str
    precision: str
    device: str
    threads: int
    n: int
    num_input: int
    num_output: int
    max_batch_size: int
    rank: int
    shortest: int
    longest: int
    seconds: float
    pairs: int
    seed: int
    vocab: int
    warm_up_s: float = 2.0
    """On a GPU longer: its driver and libraries load a kernel when it is first used."""


@dataclass(kw_only=True)
class Seen:
    """What one phase gave; times in seconds."""

    wall_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    num_trained: int = 0

    def __add__(self, other: Seen) -> Seen:
        """Both together."""
        return Seen(
            wall_s=self.wall_s + other.wall_s,
            gaps_s=self.gaps_s + other.gaps_s,
            ttft_s=self.ttft_s + other.ttft_s,
            num_trained=self.num_trained + other.num_trained,
        )

    def record(self) -> Record:
        """Return its figures; None where there was nothing to see."""
        return {
            "itl_ms": _ms(mean(self.gaps_s)) if self.gaps_s else None,
            "itl_p95_ms": _ms(_percentile(self.gaps_s, 0.95)) if self.gaps_s else None,
            "itl_max_ms": _ms(max(self.gaps_s)) if self.gaps_s else None,
            "ttft_ms": _ms(mean(self.ttft_s)) if self.ttft_s else None,
            "ttft_max_ms": _ms(max(self.ttft_s)) if self.ttft_s else None,
            "train_tok_s": round(self.num_trained / self.wall_s, 2) if self.num_trained else None,
        }


class Serving:
    """The sequences that generate, and every half second a request that asks for one token."""

    def __init__(self, driver: Driver, job: Job, rng: random.Random) -> None:
        self._driver, self._job, self._rng = driver, job, rng
        self._last_s: dict[int, float | None] = {}
        """When each sequence gave its last token; None before its first."""
        self._arrived_s: dict[int, float] = {}
        self._next_s = 0.0
        self._all_begun = False
        self.is_on = False

    def start(self) -> None:
        """Let the sequences begin, each at another place, so that they do not end together."""
        self.is_on, self._all_begun = True, False
        self._next_s = time.perf_counter() + ARRIVAL_S
        for index in range(self._job.n):
            self._begin(1 + self._job.num_output * (index + 1) // self._job.n)

    def arrive(self) -> None:
        """Hand over the request whose time has come. It counts from then on, not from when the loop got to it."""
        if self.is_on and time.perf_counter() >= self._next_s:
            self._arrived_s[self._add(1)] = self._next_s
            self._next_s += ARRIVAL_S

    def note(self, outputs: Sequence[SequenceOutput], seen: Seen) -> None:
        """Take in what a step brought."""
        now = time.perf_counter()
        for output in outputs:
            if output.seq_id in self._arrived_s:
                seen.ttft_s.append(now - self._arrived_s.pop(output.seq_id))
                continue
            last_s = self._last_s[output.seq_id]
            if last_s is not None and self._all_begun:  # they do not begin at once in the middle of the work
                seen.gaps_s.append(now - last_s)
            self._last_s[output.seq_id] = now
            self._all_begun |= None not in self._last_s.values()
            if output.finish_reason is not None:
                del self._last_s[output.seq_id]
                if self.is_on:
                    self._begin(self._job.num_output)

    @property
    def is_busy(self) -> bool:
        """Sequences have not ended yet."""
        return bool(self._last_s or self._arrived_s)

    def _begin(self, num_output: int) -> None:
        self._last_s[self._add(num_output)] = None

    def _add(self, num_output: int) -> int:
        sampling = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True)
        return self._driver.add(
            SERVED, random_tokens(self._rng, self._job.num_input, self._job.vocab), sampling=sampling
        )


class Training:
    """Samples for one adapter, always more than a micro-batch of them, and a step after every few."""

    def __init__(self, driver: Driver, job: Job, rng: random.Random) -> None:
        self._driver, self._job, self._rng = driver, job, rng
        self._open: list[tuple[int, Pending]] = []
        self._num_samples = 0

    def feed(self) -> None:
        """Queue samples until two micro-batches wait."""
        while sum(size for size, _ in self._open) < 2 * self._job.max_batch_size:
            size = self._rng.randint(self._job.shortest, self._job.longest)
            self._open.append((size, self._driver.train(TRAINED, random_tokens(self._rng, size, self._job.vocab))))
            self._num_samples += 1
            if self._num_samples % SAMPLES_A_STEP == 0:
                self._open.append((0, self._driver.optim_step(TRAINED, lr=1e-4)))

    def take(self) -> int:
        """Return the tokens of the samples that are through since the last look."""
        done = [(size, pending) for size, pending in self._open if not pending.is_open]
        self._open = [entry for entry in self._open if entry[1].is_open]
        for _, pending in done:
            pending.result()
        return sum(size for size, _ in done)

    @property
    def is_busy(self) -> bool:
        """Samples wait or run."""
        return bool(self._open)


class Bench:
    """One runtime with an instance to serve and one to train on the same backbone."""

    def __init__(self, job: Job, driver: Driver | None = None) -> None:
        """driver: of a runtime that has the model already; None makes one."""
        self._job = job
        rng = random.Random(job.seed)
        self.driver = driver or Driver(
            EngineConfig(
                device=job.device,  # type: ignore[arg-type]  # the plan refuses what it does not know
                precision=job.precision,  # type: ignore[arg-type]
                num_threads=job.threads,
            )
        )
        self.serving, self.training = Serving(self.driver, job, rng), Training(self.driver, job, rng)

    def spawn(self) -> None:
        """Load the model."""
        job = self._job
        # One sequence more in every place: the one that arrives while the others generate.
        room = 2 * (job.n + 1) * (job.num_input + job.num_output)
        training = SpawnSpec(
            path=job.model,
            mode="training",
            max_batch_size=job.max_batch_size,
            use_adapter=True,
            adapter=AdapterSpec(rank=job.rank),
            kv_cache_len=max(room, job.longest),
        )
        self.driver.spawn(TRAINED, training)
        self.driver.spawn(SERVED, SpawnSpec(path=job.model))
        gc.collect()
        gc.freeze()  # as a worker does: a full collection would take 100 ms, between two tokens of everyone

    def phase(self, seconds: float, *, serves: bool, trains: bool) -> Seen:
        """Run for so long, and on to the end of a micro-batch; then let everything end, uncounted."""
        seen, began = Seen(), time.perf_counter()
        if serves:
            self.serving.start()
        while True:
            self.serving.arrive()
            if trains:
                self.training.feed()
            self.serving.note(self.driver.step(), seen)
            num_trained = self.training.take()
            seen.num_trained += num_trained
            if time.perf_counter() - began >= seconds and (num_trained or not trains):
                break
        seen.wall_s = time.perf_counter() - began
        self.serving.is_on = False
        while self.serving.is_busy or self.training.is_busy:
            self.serving.note(self.driver.step(), Seen())
            self.training.take()
        return seen


def run(**fields: object) -> list[Record]:
    """Measure serving without and with training in turn, since machines drift; then training alone."""
    job = Job(**fields)  # type: ignore[arg-type]  # a job that came through JSON
    return measured(job, Bench(job))


def measured(job: Job, bench: Bench) -> list[Record]:
    """The same with a runtime at hand."""
    bench.spawn()
    bench.phase(job.warm_up_s, serves=True, trains=True)
    pairs = []
    for _ in range(job.pairs):
        alone = bench.phase(job.seconds, serves=True, trains=False)
        pairs.append((alone, bench.phase(job.seconds, serves=True, trains=True)))
    return interleave_records(job, pairs, bench.phase(job.seconds, serves=False, trains=True))


def interleave_records(job: Job, pairs: Sequence[tuple[Seen, Seen]], training: Seen) -> list[Record]:
    """Return a record for each situation, all its phases together; that of `both` says whether the bound holds.

    pairs: what serving gave without training and with it, one phase after the other.
    """
    shape = {name: getattr(job, name) for name in ("precision", "device", "n", "max_batch_size", "rank", "seconds")}
    serving, both = (sum(phases, Seen()) for phases in zip(*pairs, strict=True))
    phases = {"serving": serving, "training": training, "both": both}
    records = [{**shape, "phase": name, **seen.record(), "ok": None} for name, seen in phases.items()]
    ratio = spread([mean(with_training.gaps_s) / mean(alone.gaps_s) for alone, with_training in pairs])
    records[-1] |= {
        "ratio_min": round(ratio.low, 3),
        "ratio_median": round(ratio.median, 3),
        "ratio_max": round(ratio.high, 3),
        "bound": BOUND,
        "ok": ratio.median <= BOUND,
    }
    return records


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


if __name__ == "__main__":
    answer(run)
