"""How many tokens to propose: as many as pay, by what steps were measured to cost and proposals to bring.

A step that verifies `k` proposals for each sequence brings `1 + a_1 + a_1 a_2 + ... + a_1 ... a_k` tokens for each,
where `a_i` is the share of proposals `i` that were right where all before were. What it costs is measured for each
number of sequences: in a short trial and without proposals at first, then with what seems best, and now and then with
another number. Trials may cost a hundredth of the time, and so may proposals that were taken up and did not pay: what
was lost puts off the next trial.
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
_NEWEST = 0.1
"""Share of the newest step in a mean over many."""
_OUTLIER, _BESIDES = 1.25, 2.0
"""A step counts as so many times the mean at most: one that something else held up says nothing of the next, and a mean
that it moved would have to be measured again before that number is chosen. In what a trial cost it counts as the other,
for a draft reads what it lacks."""
_OPTIMISM, _PRIOR = 0.7, 4
"""Share of proposals that are taken to be right before any was seen, and of how many that counts as the mean."""
_FEW, _MANY_STEPS = 48, 4
"""Proposals whose mean counts, older ones fade: so many, or those of so many steps where that is more."""
_EXPLORED = 3
"""Steps after which the cost of none is known."""
_PROBED, _PROBED_ROWS = 4, 8
"""Proposals of a step that tries whether any pay, at most: for one sequence, and for all where there are several."""
_FIRST_PAUSE, _TRIAL_STEPS, _PROBE_STEPS, _MAX_TRIAL_STEPS = 16, 3, 1, 32
"""Steps between trials; those of one that are typical, fewer where nothing is proposed; of all kinds, at most."""
_TRIAL_SHARE, _MAX_LOSS = 0.01, 4
"""Of the time, what trials may cost; of steps without proposals, what a single one may in which a draft reads what it
stayed behind."""
_WORTHWHILE, _HOPELESS = 1.05, 0.97
"""Gain from which on proposals are taken up, for the draft must first read what it stayed behind, and below which they
are given up."""


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

    def observe(self, seconds: float, *, is_typical: bool) -> float:
        """What of it counts. What is not typical does only until something typical comes."""
        if not is_typical:
            if not self.num_typical:
                self.seconds = seconds
            return seconds
        self.num_typical += 1
        if self.seconds is None or self.num_typical == 1:
            self.seconds = seconds
        elif self.num_typical <= _EXPLORED:
            self.seconds = min(self.seconds, seconds)  # the first ones may compile or allocate something
        else:
            newest = max(_NEWEST, 1 / self.num_typical)
            self.seconds += newest * (min(seconds, _OUTLIER * self.seconds) - self.seconds)
        return min(seconds, _OUTLIER * self.seconds)


@dataclass(slots=True)
class _Trial:
    num_steps: int
    length: int
    """Typical steps after which it ends."""
    num_asked: int = 0
    num_seen: int = 0
    num_typical: int = 0
    seconds: float = 0.0
    tokens: float = 0.0

    def lost_s(self, rate: float, step_s: float) -> float:
        """Against so many tokens per second, where a step is known to take so long."""
        return min(self.seconds, self.num_seen * _BESIDES * step_s) - self.tokens / rate


@dataclass(slots=True)
class _Size:
    """What was seen at one number of sequences."""

    trial: _Trial | None
    """The present one."""
    tried: _Trial | None = None
    """The last one without proposals beside it."""
    costs: dict[int, _Cost] = field(default_factory=dict)
    """By number of proposals."""
    best: int = 0
    """The number that was best when last asked."""
    best_rate: float = 0.0
    """Tokens of a sequence per second with it; 0 until it is known what steps without proposals cost."""
    most: int = 0
    """Proposals that are possible now."""
    share: float = 1.0
    """Of the sequences, those that get any."""
    pause: int = _FIRST_PAUSE
    """Steps to the next trial."""
    num_trials: int = 0
    lost_s: float = 0.0
    """By proposing rather than not, since it was last tried: what that cost, too."""

    def cost(self, num_steps: int) -> _Cost:
        return self.costs.setdefault(num_steps, _Cost())

    def seconds(self) -> dict[int, float]:
        """Of typical steps, unless there were none with proposals."""
        has_typical = any(cost.num_typical for steps, cost in self.costs.items() if steps)
        return {
            steps: cost.seconds
            for steps, cost in self.costs.items()
            if cost.seconds is not None and (cost.num_typical or not has_typical)
        }

    @property
    def plain_s(self) -> float:
        """Of a step without proposals, once it is known."""
        return self.costs[0].seconds or 0.0

    def lost_in(self, trial: _Trial) -> float:
        """Seconds against what is best."""
        return trial.lost_s(self.best_rate, self.cost(trial.num_steps).seconds or 0.0)

    def rest(self, lost_s: float) -> None:
        """No trial until so much lost time is a small share of all."""
        step_s = self.seconds().get(self.best, 0.0)
        self.pause = max(_FIRST_PAUSE, round(lost_s / (_TRIAL_SHARE * step_s)) if step_s > 0 else 0)


class Speculation:
    """Chooses the number of proposals for each step of one model."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self._right = [_OPTIMISM] * max_steps
        """Share of proposals that were right where all before were."""
        self._num_seen = [_PRIOR] * max_steps
        self._many = _FEW
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
        size.most, size.share = most, share
        if (trial := size.trial) is not None:
            trial.num_asked += 1
            trial.num_steps = min(trial.num_steps, most)
            if trial.num_asked <= _MAX_TRIAL_STEPS:
                return Choice(num_sequences, trial.num_steps, size.best > 0 or not size.best_rate)
            self._end_trial(size, trial)
        if size.best:
            self._decide(size)
        return Choice(num_sequences, size.best)

    def observe(self, choice: Choice, seconds: float, tokens: float, *, is_typical: bool = True) -> None:
        """A step took so long and brought so many tokens, in the mean over its sequences.

        is_typical: every sequence with a draft got proposals, and the step before was of the same kind.
        """
        size = self._size(choice.num_sequences)
        seconds = size.cost(choice.num_steps).observe(seconds, is_typical=is_typical)
        if size.best:
            size.lost_s += seconds - tokens * size.plain_s
        if (trial := size.trial) is not None:
            if choice.num_steps != trial.num_steps:
                return  # it was on its way when the trial began
            trial.seconds += seconds
            trial.tokens += tokens
            trial.num_seen += 1
            trial.num_typical += is_typical
            reads_up = size.best_rate and not size.best
            costs_much = reads_up and size.lost_in(trial) > _MAX_LOSS * size.plain_s
            if trial.num_typical >= trial.length or costs_much:
                self._end_trial(size, trial)
        elif not size.best_rate:
            if size.cost(0).num_typical >= _EXPLORED:
                self._conclude(size)
        else:
            size.pause -= 1
            if size.pause <= 0:
                self._begin_trial(size, choice.num_sequences)

    def note(self, num_proposed: int, num_accepted: int) -> None:
        """Of the proposals for a sequence, so many were right before one was wrong."""
        for place in range(min(num_accepted + 1, num_proposed)):
            self._num_seen[place] = min(self._num_seen[place] + 1, self._many)
            self._right[place] += ((place < num_accepted) - self._right[place]) / self._num_seen[place]

    def _size(self, num_sequences: int) -> _Size:
        """One that was never seen begins as its neighbour does.

        Where that one proposes, or there is none, a trial comes first: the draft reads prompts along, so it has hardly
        anything to catch up with.
        """
        place = min(bisect.bisect_left(_SIZES, num_sequences), len(_SIZES) - 1)
        size = self._sizes.get(_SIZES[place])
        if size is None:
            known = [other for other, it in self._sizes.items() if it.best_rate]
            nearest = min(known, key=lambda other: abs(_SIZES.index(other) - place), default=None)
            proposes = nearest is None or self._sizes[nearest].best > 0
            trial = _Trial(_tried_first(num_sequences), _EXPLORED - 1) if proposes else None
            size = self._sizes[_SIZES[place]] = _Size(trial)
        return size

    def _conclude(self, size: _Size) -> None:
        """Where nothing was proposed and something was tried: take it up if it pays."""
        size.best, size.best_rate = 0, 1 / size.plain_s
        was_measured = size.tried is not None and size.tried.num_seen > 0
        size.lost_s = 0.0 if size.tried is None else size.lost_in(size.tried)
        rates = self._rates(size)
        best = _best(rates)
        if was_measured and rates[best] >= _WORTHWHILE * rates[0]:
            size.best, size.best_rate, size.pause = best, rates[best], _FIRST_PAUSE
        else:
            size.rest(size.lost_s)

    def _decide(self, size: _Size) -> None:
        """Where something is proposed: how much, or none from now on."""
        rates = self._rates(size)
        best = _best(rates)
        if rates[best] >= _HOPELESS * rates[0]:
            size.best, size.best_rate = best, rates[best]
        else:
            size.best, size.best_rate = 0, rates[0]
            size.rest(size.lost_s)

    def _rates(self, size: _Size) -> Sequence[float]:
        """Tokens of a sequence per second for each number of proposals, as far as one can tell."""
        tokens = accumulate((size.share * right for right in accumulate(self._right[: size.most], mul)), initial=1.0)
        known = size.seconds()
        return [count / _seconds(known, num_steps) for num_steps, count in enumerate(tokens)]

    def _begin_trial(self, size: _Size, num_sequences: int) -> None:
        """A number beside the best one, or none, in turn; where nothing is proposed, what would be best then."""
        size.num_trials += 1
        if size.best:
            beside = (size.best - 1, size.best + 1, 0)
            others = [steps for steps in dict.fromkeys(beside) if 0 <= steps <= size.most and steps != size.best]
            size.trial = _Trial(others[size.num_trials % len(others)], _TRIAL_STEPS)
            return
        size.trial = _Trial(min(_tried_first(num_sequences), _best(self._rates(size))), _PROBE_STEPS)
        self._num_seen = [min(seen, _PRIOR) for seen in self._num_seen]  # what was right or wrong is long ago

    def _end_trial(self, size: _Size, trial: _Trial) -> None:
        """The more it lost against what is best, the longer until the next one."""
        size.trial = None
        if size.best:
            size.rest(size.lost_in(trial))
            return
        size.tried = trial
        if size.best_rate:
            self._conclude(size)


def _tried_first(num_sequences: int) -> int:
    return max(1, min(_PROBED, _PROBED_ROWS // num_sequences))


def _best(rates: Sequence[float]) -> int:
    """Of the numbers from one on."""
    return rates.index(max(rates[1:]), 1)


def _seconds(known: dict[int, float], num_steps: int) -> float:
    """Measured, or on the line through what was measured nearest; what nobody tried is taken as free."""
    if num_steps in known:
        return known[num_steps]
    if len(known) < 2:
        return next(iter(known.values()), 1.0)
    low, high = sorted(sorted(known, key=lambda steps: abs(steps - num_steps))[:2])
    slope = max(0.0, (known[high] - known[low]) / (high - low))
    return max(known[low] + slope * (num_steps - low), min(known.values()))
