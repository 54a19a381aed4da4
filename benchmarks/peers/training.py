"""The words between the harness and a process that trains a LoRA adapter: samples in, seconds, loss and memory out."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from benchmarks.peers.channel import Answering, converse
from benchmarks.peers.peak import Peak


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What both sides train, and how."""

    model: str
    adapter: str
    """Folder of the first adapter in PEFT's format: Harmonia writes it, the peer begins with it."""
    rank: int
    precision: str
    device: str
    threads: int
    lr: float
    max_grad_norm: float
    batch_size: int
    """Samples that the peer pads to one length; Harmonia packs without padding."""
    is_sorted: bool
    """The peer's batches hold samples of like length."""
    max_tokens: int
    """Tokens of one micro-batch of Harmonia."""
    longest: int
    """Tokens of the longest sample."""


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """One optimizer step."""

    loss: float
    """Of the samples before the step: negative log-likelihood in nats, summed over all tokens."""
    num_computed: int
    """Tokens that passed through the model, padding included."""


class Trainer(Protocol):
    """A loaded model and its adapter."""

    @property
    def version(self) -> str:
        """The versions of what trains."""
        ...

    @property
    def arrangement(self) -> str:
        """How samples become batches, in words."""
        ...

    @property
    def peak(self) -> Peak:
        """What it takes, from before the weights were read."""
        ...

    def step(self, samples: list[list[int]]) -> Stepped:
        """One AdamW step by the mean gradient of the samples, each a sum over its tokens."""
        ...


def serve_training(load: Callable[[TrainingJob], Trainer]) -> None:
    """Let a loaded trainer take the steps that the harness asks for."""

    def begin(**job: Any) -> tuple[dict[str, object], Answering]:
        start = time.perf_counter()
        trainer = load(TrainingJob(**job))
        ready_s = round(time.perf_counter() - start, 2)
        told = {"version": trainer.version, "arrangement": trainer.arrangement, "ready_s": ready_s}
        return told, partial(_steps, trainer)

    converse(begin)


def _steps(trainer: Trainer, steps: list[list[list[int]]], *, watched: bool) -> dict[str, object]:
    """A step for each list of samples."""
    if watched:
        trainer.peak.watch()
    start = time.perf_counter()
    done = [trainer.step(samples) for samples in steps]
    wall_s = time.perf_counter() - start
    return {
        "wall_s": wall_s,
        "losses": [stepped.loss for stepped in done],
        "num_computed": sum(stepped.num_computed for stepped in done),
        "peak_bytes": trainer.peak.stop() if watched else None,
    }
