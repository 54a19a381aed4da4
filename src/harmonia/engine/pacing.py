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

from harmonia.train.packing import Slice

_FORGET = 0.5
"""Weight of the past in the estimate of a slice's duration."""
_AHEAD_S = 0.015
_FEW_TOKENS = 64
"""Slices of fewer take as long."""
_OUTLIER = 4.0
"""A slice counts for at most so many times what was expected: beyond that something was compiled or allocated, which
says nothing about the next one."""


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
        self._seen: set[str] = set()
        """Kinds that ran. The first time says nothing about the next: it compiles, allocates, and chooses."""
        self._growing: set[str] = set()
        """Kinds that take longer with more tokens."""
        self._served_s = 0.0
        """When the last step ended, if it served something."""
        self._queued: deque[_Queued] = deque()
        self._owed_s = 0.0
        """Of slices beside serving that the time of no serving step was shortened by yet."""

    def expected(self, piece: Slice) -> float:
        """What it will take, by what the last ones of its kind took; of an unknown kind, by the slowest kind."""
        rate = self._per_token_s.get(piece.kind)
        if rate is None:
            rate = max((self._per_token_s[kind] for kind in self._growing), default=0.0)
        return max(_FEW_TOKENS, piece.num_tokens) * rate

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
            started, expected_s = time.perf_counter(), self.expected(piece)
            run_slice()
            seconds = time.perf_counter() - started
            if beside_serving:
                self._charge(seconds, _counted(seconds, expected_s))
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
        if beside_serving:
            self._charge(queued.expected_s, queued.expected_s)

    def _collect(self) -> None:
        """Take note of what is done."""
        while self._queued and self._queued[0].ended.query():
            done = self._queued.popleft()
            seconds = done.began.elapsed_time(done.ended) / 1000
            if done.beside_serving:
                expected_s = done.expected_s
                self._charge(seconds - expected_s, _counted(seconds, expected_s) - expected_s)
            self._learn(done.slice, seconds)

    def _charge(self, seconds: float, counted_s: float) -> None:
        """A slice took so much of the time between two serving steps, or so much more than was expected."""
        self._credit_s -= counted_s
        self._owed_s = max(0.0, self._owed_s + seconds)

    def _learn(self, piece: Slice, seconds: float) -> None:
        if piece.kind not in self._seen:
            self._seen.add(piece.kind)
            return
        rate = seconds / max(_FEW_TOKENS, piece.num_tokens)
        known = self._per_token_s.get(piece.kind, rate)
        if rate > known / _OUTLIER:  # else what is known was an outlier
            rate = known + (1 - _FORGET) * (min(rate, _OUTLIER * known) - known)
        self._per_token_s[piece.kind] = rate
        if piece.num_tokens > 1:
            self._growing.add(piece.kind)


def _counted(seconds: float, expected_s: float) -> float:
    """What a slice is charged: nothing while nothing is known."""
    return min(seconds, _OUTLIER * expected_s)
