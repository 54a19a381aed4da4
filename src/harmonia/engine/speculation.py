"""How many tokens to propose: as many as pay, by what steps were measured to cost and proposals to bring.

A step that verifies `k` proposals for each sequence brings `1 + a_1 + a_1 a_2 + ... + a_1 ... a_k` tokens for each,
where `a_i` is the share of proposals `i` that were right where all before were. What it costs is measured for each
number of sequences. Now and then another `k` is tried, as often as trials may cost a hundredth of the time.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of sequences that are told apart."""
_MEMORY = 0.9
"""Of a mean over steps, what the next one leaves of it."""
_OPTIMISM, _PRIOR = 0.7, 4
"""Share of proposals that are taken to be right before any was seen, and of how many that counts as the mean."""
_MANY = 50
"""Proposals whose mean counts; older ones fade."""
_FIRST_PAUSE, _TRIAL_STEPS = 16, 4
_TRIAL_SHARE = 0.01
"""Of the time, what trials may cost."""


@dataclass(slots=True)
class _Size:
    """What was seen at one number of sequences."""

    seconds: dict[int, float] = field(default_factory=dict)
    """Mean time of a step by number of proposals."""
    pause: int = _FIRST_PAUSE
    """Steps between trials."""
    since_trial: int = 0
    num_trials: int = 0
    trial: int = 0
    """Proposals on trial."""


class Speculation:
    """Chooses the number of proposals for each step of one model."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self._right = [_OPTIMISM] * max_steps
        """Share of proposals that were right where all before were."""
        self._num_seen = [_PRIOR] * max_steps
        self._sizes: dict[int, _Size] = {}

    def num_steps(self, num_sequences: int, share: float = 1.0) -> int:
        """Proposals in the next step of so many sequences; share: of those that get any."""
        size = self._size(num_sequences)
        size.since_trial += 1
        if size.since_trial <= size.pause:
            rates = self._rates(size, share)
            return rates.index(max(rates))
        if size.since_trial == size.pause + 1:
            self._choose_trial(size, self._rates(size, share))
        elif size.since_trial >= size.pause + _TRIAL_STEPS:
            size.since_trial = 0
            size.pause = self._pause(size, self._rates(size, share))
        return size.trial

    def observe(self, num_sequences: int, num_steps: int, seconds: float) -> None:
        """A step took so long."""
        size = self._size(num_sequences)
        before = size.seconds.get(num_steps)
        size.seconds[num_steps] = seconds if before is None else _MEMORY * before + (1 - _MEMORY) * seconds

    def note(self, num_proposed: int, num_accepted: int) -> None:
        """Of the proposals for a sequence, so many were right before one was wrong."""
        for place in range(min(num_accepted + 1, num_proposed)):
            self._num_seen[place] = min(self._num_seen[place] + 1, _MANY)
            self._right[place] += ((place < num_accepted) - self._right[place]) / self._num_seen[place]

    def _size(self, num_sequences: int) -> _Size:
        place = min(bisect.bisect_left(_SIZES, num_sequences), len(_SIZES) - 1)
        return self._sizes.setdefault(_SIZES[place], _Size())

    def _rates(self, size: _Size, share: float) -> list[float]:
        """Tokens of a sequence per second for each number of proposals, as far as one can tell."""
        tokens = accumulate((share * accepted for accepted in accumulate(self._right, mul)), initial=1.0)
        return [count / _seconds(size.seconds, num_steps) for num_steps, count in enumerate(tokens)]

    def _choose_trial(self, size: _Size, rates: Sequence[float]) -> None:
        """A number beside the best one, or none, in turn."""
        best = rates.index(max(rates))
        others = [steps for steps in (best - 1, best + 1, 0) if 0 <= steps <= self.max_steps and steps != best]
        size.num_trials += 1
        size.trial = others[size.num_trials % len(others)]

    @staticmethod
    def _pause(size: _Size, rates: Sequence[float]) -> int:
        """Steps until the next trial: the less the last one brought, the longer."""
        best = rates.index(max(rates))
        lost = 1 - rates[size.trial] / rates[best]
        longer = _seconds(size.seconds, size.trial) / _seconds(size.seconds, best)
        return max(_FIRST_PAUSE, round(_TRIAL_STEPS * lost * longer / _TRIAL_SHARE))


def _seconds(known: dict[int, float], num_steps: int) -> float:
    """Measured, or on the line through what was measured nearest; what nobody tried is taken as free."""
    if num_steps in known:
        return known[num_steps]
    if len(known) < 2:
        return next(iter(known.values()), 1.0)
    low, high = sorted(sorted(known, key=lambda steps: abs(steps - num_steps))[:2])
    slope = max(0.0, (known[high] - known[low]) / (high - low))
    return max(known[low] + slope * (num_steps - low), min(known.values()))
