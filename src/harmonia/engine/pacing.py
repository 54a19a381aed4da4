"""How much training may run beside serving, and how far ahead of a GPU.

While something is served, slices of training take at most `share` of the time that serving steps take, so the mean time
between tokens rises by that share. What serving leaves over is saved up as credit, for at most one slice.

On a GPU slices are only queued: their durations are read from events once they are done, and until then what an
earlier slice of the kind took stands for them. At most `_AHEAD_S` of work is queued, which is what a request that comes
in may have to wait for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from harmonia.train.microbatch import Slice

_FORGET = 0.5
"""Weight of the past in the estimate of a slice's duration."""
_AHEAD_S = 0.03
_FEW_TOKENS = 64
"""Slices of fewer take as long."""


@dataclass(slots=True)
class _Queued:
    """A slice that a GPU was given."""

    slice: Slice
    began: torch.cuda.Event
    ended: torch.cuda.Event
    expected_s: float
    beside_serving: bool


class Pacer:
    """Times are in seconds."""

    def __init__(self, share: float) -> None:
        """share: 0.2 lets the mean inter-token latency rise 1.2 times."""
        self._share = share
        self._credit_s = 0.0
        self._earned_s = 0.0
        self._per_token_s: dict[str, float] = {}
        self._slowest_s = 0.0
        """Per token, of the kinds that grow with tokens."""
        self._served_s = 0.0
        """When the last step ended, if it served something."""
        self._queued: deque[_Queued] = deque()
        self._owed_s = 0.0
        """Of slices beside serving that the time of no serving step was shortened by yet."""

    def expected(self, piece: Slice) -> float:
        """What it will take, by what the last ones of its kind took; of an unknown kind, what is slowest so far."""
        return max(_FEW_TOKENS, piece.num_tokens) * self._per_token_s.get(piece.kind, self._slowest_s)

    def may_train(self, piece: Slice) -> bool:
        """Serving has left enough time for this slice."""
        expected_s = self.expected(piece)
        self._credit_s = min(self._credit_s, expected_s + self._earned_s)
        return self._credit_s >= expected_s

    def stepped(self, started_s: float, *, served: bool) -> None:
        """A step that began then ends now. It counts from the end of the one before, if both served something."""
        now = time.perf_counter()
        if served:
            self.served(now - (self._served_s or started_s))
        self._served_s = now if served else 0.0

    def served(self, seconds: float) -> None:
        """So much passed since the last serving step ended, slices included: what they took is no time of serving."""
        self._collect()
        trained_s = min(seconds, self._owed_s)
        self._owed_s -= trained_s
        self._earned_s = self._share * (seconds - trained_s)
        self._credit_s += self._earned_s

    def run(self, run_slice: Callable[[], None], piece: Slice, device: torch.device, *, beside_serving: bool) -> None:
        """Run a slice, or queue it once there is little before it."""
        if device.type != "cuda":
            started = time.perf_counter()
            run_slice()
            seconds = time.perf_counter() - started
            self._charge(seconds if beside_serving else 0.0)
            self._learn(piece, seconds)
            return
        self._collect()
        while len(self._queued) > 1 and sum(queued.expected_s for queued in self._queued) > _AHEAD_S:
            self._queued[0].ended.synchronize()
            self._collect()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        queued = _Queued(piece, began, ended, self.expected(piece), beside_serving)
        queued.began.record()
        run_slice()
        queued.ended.record()
        self._queued.append(queued)
        self._charge(queued.expected_s if beside_serving else 0.0)

    def _collect(self) -> None:
        """Take note of what is done."""
        while self._queued and self._queued[0].ended.query():
            done = self._queued.popleft()
            seconds = done.began.elapsed_time(done.ended) / 1000
            self._charge(seconds - done.expected_s if done.beside_serving else 0.0)
            self._learn(done.slice, seconds)

    def _charge(self, seconds: float) -> None:
        """A slice took so much of the time between two serving steps, or so much more than was expected."""
        self._credit_s -= seconds
        self._owed_s = max(0.0, self._owed_s + seconds)

    def _learn(self, piece: Slice, seconds: float) -> None:
        rate = seconds / max(_FEW_TOKENS, piece.num_tokens)
        rate += _FORGET * (self._per_token_s.get(piece.kind, rate) - rate)
        self._per_token_s[piece.kind] = rate
        if piece.num_tokens > 1:
            self._slowest_s = max(self._slowest_s, rate)
