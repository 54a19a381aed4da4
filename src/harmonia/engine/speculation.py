"""How many tokens to propose: as many as pay, by what steps were measured to cost and proposals to bring.

A step that verifies `k` proposals for each sequence brings `1 + a_1 + a_1 a_2 + ... + a_1 ... a_k` tokens for each,
where `a_i` is the share of proposals `i` that were right where all before were. What it costs is measured for each
number of sequences: first with most proposals and with none, then with what seems best, and now and then with another
number, as often as such trials may cost a hundredth of the time.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import NamedTuple

from harmonia.engine.sequence import Drafter

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of sequences that are told apart."""
_MEMORY = 0.9
"""Of a mean over steps, what the next one leaves of it."""
_OUTLIER = 2.0
"""A step counts as so many times the mean at most: one that something else held up says nothing of the next."""
_OPTIMISM, _PRIOR = 0.7, 4
"""Share of proposals that are taken to be right before any was seen, and of how many that counts as the mean."""
_FEW, _MANY_STEPS = 24, 4
"""Proposals whose mean counts, older ones fade: so many, or those of so many steps where that is more."""
_EXPLORED, _MAX_ASKED = 3, 64
"""Steps after which a cost is known; steps after which it is left unknown, none of them having been typical."""
_FIRST_PAUSE, _TRIAL_STEPS, _PROBE_STEPS, _MAX_TRIAL_STEPS = 16, 4, 2, 32
"""Steps between trials; those of one, fewer where nothing is proposed; at most, with those of which nobody measures."""
_TRIAL_SHARE = 0.01
"""Of the time, what trials may cost."""
_WORTHWHILE = 1.05
"""Gain from which on a draft is taken up again: it must first read what it stayed behind."""


class Choice(NamedTuple):
    """What the next step proposes."""

    num_sequences: int
    """For which it was chosen: those that run or are about to."""
    num_steps: int
    """Proposals for each."""
    in_earnest: bool = True
    """False: drafting does not pay and this is a trial, for which a draft must not read much that it stayed behind."""
    drafters: frozenset[Drafter] = frozenset()
    """Who makes them."""


NO_PROPOSALS = Choice(0, 0)


@dataclass(slots=True)
class _Cost:
    """Of steps with one number of proposals."""

    seconds: float | None = None
    """Mean time; None before anything was measured."""
    num_typical: int = 0
    num_asked: int = 0

    @property
    def is_known(self) -> bool:
        """Or nothing more is to be learnt by trying it first."""
        return self.num_typical >= _EXPLORED or self.num_asked >= _MAX_ASKED

    def observe(self, seconds: float, *, is_typical: bool) -> None:
        """What is not typical counts only until something typical comes."""
        if not is_typical:
            if not self.num_typical:
                self.seconds = seconds
            return
        self.num_typical += 1
        if self.seconds is None or self.num_typical == 1:
            self.seconds = seconds
        elif self.num_typical <= _EXPLORED:
            self.seconds = min(self.seconds, seconds)  # the first ones may compile or allocate something
        else:
            self.seconds += (1 - _MEMORY) * (min(seconds, _OUTLIER * self.seconds) - self.seconds)


@dataclass(slots=True)
class _Trial:
    num_steps: int
    length: int
    """Steps that are measured."""
    num_asked: int = 0
    num_seen: int = 0
    seconds: float = 0.0
    tokens: float = 0.0


@dataclass(slots=True)
class _Size:
    """What was seen at one number of sequences."""

    costs: dict[int, _Cost] = field(default_factory=dict)
    """By number of proposals."""
    best: int = 0
    """The number that was best when last asked."""
    best_rate: float = 0.0
    """Tokens of a sequence per second with it."""
    most: int = 0
    """Proposals that were possible then."""
    basis: tuple[int, float, int] | None = None
    """What the choice of none was based on: while nothing is proposed, nothing new is learnt, and choosing is free."""
    pause: int = _FIRST_PAUSE
    """Steps to the next trial."""
    num_trials: int = 0
    trial: _Trial | None = None

    def cost(self, num_steps: int) -> _Cost:
        return self.costs.setdefault(num_steps, _Cost())

    def seconds(self) -> dict[int, float]:
        return {steps: cost.seconds for steps, cost in self.costs.items() if cost.seconds is not None}


class Speculation:
    """Chooses the number of proposals for each step of one model."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self._right = [_OPTIMISM] * max_steps
        """Share of proposals that were right where all before were."""
        self._num_seen = [_PRIOR] * max_steps
        self._many = _FEW
        self._num_noted = 0
        self._sizes: dict[int, _Size] = {}

    def choose(self, num_sequences: int, share: float = 1.0, most: int | None = None) -> Choice:
        """Proposals in the next step of so many sequences; share: of those that get any; most: as there is room for.

        To be asked once for each step.
        """
        most = self.max_steps if most is None else min(most, self.max_steps)
        if most <= 0 or share <= 0:
            return Choice(num_sequences, 0)
        self._many = max(_FEW, _MANY_STEPS * num_sequences)
        size = self._size(num_sequences)
        for num_steps in (most, 0):
            cost = size.cost(num_steps)
            if not cost.is_known:
                cost.num_asked += 1
                return Choice(num_sequences, num_steps)
        basis = self._num_noted, share, most
        if size.basis != basis:
            self._decide(size, share, most)
            size.basis = None if size.best else basis
        if size.trial is None:
            return Choice(num_sequences, size.best)
        size.trial.num_asked += 1
        if size.trial.num_asked > _MAX_TRIAL_STEPS:
            self._end_trial(size, size.trial)
            return Choice(num_sequences, size.best)
        return Choice(num_sequences, min(size.trial.num_steps, most), in_earnest=size.best > 0)

    def observe(self, choice: Choice, seconds: float, tokens: float, *, is_typical: bool = True) -> None:
        """A step took so long and brought so many tokens, in the mean over its sequences.

        is_typical: every sequence with a draft got proposals, and the step before was of the same kind.
        """
        size = self._size(choice.num_sequences)
        size.cost(choice.num_steps).observe(seconds, is_typical=is_typical)
        if not size.best_rate:
            return
        if size.trial is None:
            size.pause -= 1
            if size.pause <= 0:
                self._begin_trial(size)
            return
        trial = size.trial
        trial.seconds += seconds
        trial.tokens += tokens
        trial.num_seen += 1
        if trial.num_seen >= trial.length:
            self._end_trial(size, trial)

    def note(self, num_proposed: int, num_accepted: int) -> None:
        """Of the proposals for a sequence, so many were right before one was wrong."""
        self._num_noted += 1
        for place in range(min(num_accepted + 1, num_proposed)):
            self._num_seen[place] = min(self._num_seen[place] + 1, self._many)
            self._right[place] += ((place < num_accepted) - self._right[place]) / self._num_seen[place]

    def _size(self, num_sequences: int) -> _Size:
        place = min(bisect.bisect_left(_SIZES, num_sequences), len(_SIZES) - 1)
        return self._sizes.setdefault(_SIZES[place], _Size())

    def _decide(self, size: _Size, share: float, most: int) -> None:
        rates = self._rates(size, share, most)
        best = rates.index(max(rates))
        if size.best_rate and not size.best and rates[best] < _WORTHWHILE * rates[0]:
            best = 0
        size.best, size.best_rate, size.most = best, rates[best], most

    def _rates(self, size: _Size, share: float, most: int) -> Sequence[float]:
        """Tokens of a sequence per second for each number of proposals, as far as one can tell."""
        tokens = accumulate((share * right for right in accumulate(self._right[:most], mul)), initial=1.0)
        known = size.seconds()
        return [count / _seconds(known, num_steps) for num_steps, count in enumerate(tokens)]

    def _begin_trial(self, size: _Size) -> None:
        """A number beside the best one, or none, in turn; where nothing is proposed, one or as many as possible."""
        beside = (size.best - 1, size.best + 1, 0 if size.best else size.most)
        others = [steps for steps in dict.fromkeys(beside) if 0 <= steps <= size.most and steps != size.best]
        size.num_trials += 1
        size.trial = _Trial(others[size.num_trials % len(others)], _TRIAL_STEPS if size.best else _PROBE_STEPS)
        if not size.best:  # what was right or wrong before is long ago
            self._num_seen = [min(seen, _PRIOR) for seen in self._num_seen]

    @staticmethod
    def _end_trial(size: _Size, trial: _Trial) -> None:
        """The more it lost against what is best, the longer until the next one."""
        lost_s = trial.seconds - trial.tokens / size.best_rate
        step_s = size.seconds().get(size.best, lost_s)
        size.pause = max(_FIRST_PAUSE, round(lost_s / (_TRIAL_SHARE * step_s)) if step_s > 0 else 0)
        size.trial, size.basis = None, None


def _seconds(known: dict[int, float], num_steps: int) -> float:
    """Measured, or on the line through what was measured nearest; what nobody tried is taken as free."""
    if num_steps in known:
        return known[num_steps]
    if len(known) < 2:
        return next(iter(known.values()), 1.0)
    low, high = sorted(sorted(known, key=lambda steps: abs(steps - num_steps))[:2])
    slope = max(0.0, (known[high] - known[low]) / (high - low))
    return max(known[low] + slope * (num_steps - low), min(known.values()))
