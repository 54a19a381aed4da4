"""Training beside transformers and PEFT: the same samples and the same first adapter, in turn, real tokens counted."""

import math
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.company import other_cores, usage, wait_for_quiet
from benchmarks.compare import spread
from benchmarks.conversation import Conversation, conversing
from benchmarks.errors import BenchmarkError
from benchmarks.machine import Record
from benchmarks.peers.training import TrainingJob
from benchmarks.process import environment_of
from benchmarks.serve import say
from benchmarks.work import random_tokens

MB = 1e6
WARM_UP_STEPS = 2
GOAL_SPEED, GOAL_MEMORY = 1.3, 1.0
# By how much the losses of the first step may differ, per token: both sides read the same weights.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
Step = list[list[int]]
"""The samples of one optimizer step."""


@dataclass(frozen=True)
class Samples:
    """Where samples come from: lengths even between the shortest and the longest, random tokens."""

    num_samples: int
    shortest: int
    longest: int
    seed: int
    vocab: int

    def step(self, salt: str) -> Step:
        """Return the samples of one optimizer step, in no order."""
        rng = random.Random(f"{self.seed}/{salt}")
        lengths = [rng.randint(self.shortest, self.longest) for _ in range(self.num_samples)]
        return [random_tokens(rng, length, self.vocab) for length in lengths]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One step of one side."""

    num_tokens: int
    num_computed: int
    wall_s: float
    other_cores: float | None

    @property
    def tok_s(self) -> float:
        """Real tokens a second."""
        return self.num_tokens / self.wall_s


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a side is, and what its first steps gave."""

    engine: str
    version: str
    arrangement: str
    ready_s: float
    losses: Sequence[float]
    """Per token, of the first steps."""
    peak_mb: float


class Side:
    """A trainer in a process of its own, paused between its turns."""

    def __init__(self, name: str, conversation: Conversation, job: TrainingJob) -> None:
        self._name = name
        self._conversation = conversation
        self._told = conversation.ask(vars(job))
        conversation.pause()

    def warm_up(self, samples: Samples) -> Told:
        """Take the first steps, watched: neither their time nor the watching counts later."""
        steps = [samples.step(f"warm-up {index}") for index in range(WARM_UP_STEPS)]
        with self._conversation.awake():
            answer = self._conversation.ask({"steps": steps, "watched": True})
        losses = [loss / _num_targets(step) for loss, step in zip(answer["losses"], steps, strict=True)]
        peak_mb = round(answer["peak_bytes"] / MB, 1)
        return Told(engine=self._name, **self._told, losses=losses, peak_mb=peak_mb)

    def turn(self, step: Step) -> Turn:
        """Take one step, timed."""
        with self._conversation.awake():
            before = usage(self._conversation.processes)
            answer = self._conversation.ask({"steps": [step], "watched": False})
            after = usage(self._conversation.processes)
        return Turn(
            num_tokens=sum(map(len, step)),
            num_computed=answer["num_computed"],
            wall_s=answer["wall_s"],
            other_cores=other_cores(before, after),
        )


@dataclass(frozen=True, kw_only=True)
class Peer:
    """How the peer runs: an interpreter, and every arrangement of samples that it is to try."""

    python: Path
    batch_sizes: Sequence[int]
    orders: Sequence[bool]
    """Whether samples are sorted by length."""


def train(job: TrainingJob, samples: Samples, peer: Peer, *, pairs: int, quiet_s: float) -> Iterator[Record]:
    """Let Harmonia and every arrangement of the peer take turns; a record for each arrangement, the fastest quoted."""
    with ExitStack() as stack:
        job = replace(job, adapter=stack.enter_context(tempfile.TemporaryDirectory()) + "/adapter")
        sides = []
        for name, module, python, its_job in _arrangements(job, peer):
            say(f"starting {name}")
            command = [str(python), "-m", module]
            talk = stack.enter_context(conversing(name, command, environment_of(name, job.threads)))
            sides.append(Side(name, talk, its_job))
        told = []
        for side in sides:
            told.append(side.warm_up(samples))
            say(f"{told[-1].engine}, {told[-1].arrangement}: loss {told[-1].losses[0]:.6f} in the first step")
            _check_losses(told[0], told[-1], job.precision)
        turns = []
        for index in range(pairs):
            wait_for_quiet(quiet_s)
            say(f"in turn: {index + 1} of {pairs}")
            turns.append(_turns(sides, samples.step(f"pair {index}"), first=index))
    yield from train_records(job, samples, told, turns)


def _arrangements(job: TrainingJob, peer: Peer) -> Iterator[tuple[str, str, Path, TrainingJob]]:
    """Who takes part: name, module, interpreter, job. A batch of one needs no order."""
    yield "harmonia", "benchmarks.harmonia_train", Path(sys.executable), job
    for size in peer.batch_sizes:
        for is_sorted in peer.orders if size > 1 else (False,):
            its_job = replace(job, batch_size=size, is_sorted=is_sorted)
            yield "transformers", "benchmarks.peers.peft", peer.python, its_job


def _check_losses(ours: Told, other: Told, precision: str) -> None:
    difference = abs(ours.losses[0] - other.losses[0])
    if not difference <= TOLERANCE[precision]:
        raise BenchmarkError(
            f"the first step has a loss of {ours.losses[0]:.6f} per token in {ours.engine} and {other.losses[0]:.6f} in"
            f" {other.engine} ({other.arrangement}): they do not do the same work, and the figures would say nothing"
        )


def _turns(sides: Sequence[Side], step: Step, first: int) -> list[Turn]:
    """One turn of each. Who begins changes, so that nobody always has the cooler machine."""
    turns = {}
    for offset in range(len(sides)):
        index = (first + offset) % len(sides)
        turns[index] = sides[index].turn(step)
    return [turns[index] for index in range(len(sides))]


def train_records(
    job: TrainingJob, samples: Samples, told: Sequence[Told], turns: Sequence[Sequence[Turn]]
) -> Iterator[Record]:
    """Return a record for each arrangement of the peer; told and turns have Harmonia first."""
    ours, *others = range(len(told))
    speeds = {index: median(turn[index].tok_s for turn in turns) for index in others}
    for index in others:
        ratio = spread([turn[ours].tok_s / turn[index].tok_s for turn in turns])
        memory_ratio = told[ours].peak_mb / told[index].peak_mb
        is_quoted = speeds[index] == max(speeds.values())
        has_goal = is_quoted and job.device == "cpu" and job.precision == "float32"
        cores = [turn[i].other_cores for turn in turns for i in (ours, index)]
        yield {
            "kind": "train",
            "model": Path(job.model).name,
            "precision": job.precision,
            "device": job.device,
            "rank": job.rank,
            "samples": samples.num_samples,
            "lengths": [samples.shortest, samples.longest],
            "arrangement": told[index].arrangement,
            "is_quoted": is_quoted,
            "a": _side_record(told[ours], [turn[ours] for turn in turns]),
            "b": _side_record(told[index], [turn[index] for turn in turns]),
            "ratio_min": round(ratio.low, 3),
            "ratio_median": round(ratio.median, 3),
            "ratio_max": round(ratio.high, 3),
            "peak_mb": {"A": told[ours].peak_mb, "B": told[index].peak_mb},
            "memory_ratio": round(memory_ratio, 3),
            "loss_difference": max(abs(a - b) for a, b in zip(told[ours].losses, told[index].losses, strict=True)),
            "ok": ratio.median >= GOAL_SPEED and memory_ratio <= GOAL_MEMORY if has_goal else None,
            "other_cores": max((round(value, 2) for value in cores if value is not None), default=None),
        }


def _side_record(told: Told, turns: Sequence[Turn]) -> Record:
    return {
        "engine": told.engine,
        "version": told.version,
        "arrangement": told.arrangement,
        "ready_s": told.ready_s,
        "losses": [round(loss, 6) for loss in told.losses],
        "values": [round(turn.tok_s, 2) for turn in turns],
        "real_share": round(math.fsum(t.num_tokens for t in turns) / sum(t.num_computed for t in turns), 3),
    }


def _num_targets(step: Step) -> int:
    return sum(len(sample) - 1 for sample in step)
