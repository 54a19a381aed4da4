"""Whether two groups of scores differ by more than chance: p-values and 95 % intervals, without other libraries."""

from __future__ import annotations

import math
from dataclasses import dataclass

CONFIDENCE = 0.95
_TINY = 1e-300
_CLOSE = 1e-15
_MAX_STEPS = 100_000
_NORMAL_FROM = 1e7
"""Degrees of freedom from which Student's distribution is the normal one to 7 digits."""
_Z = 1.959963984540054
"""The normal distribution's two-sided bound at 95 %."""
_FEW = 100.0
"""Expected counts below this are few enough for an exact test, and too few for a close normal approximation."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of a group of numbers. squares: the sum of squared deviations from the mean."""

    count: int
    mean: float
    squares: float

    @property
    def variance(self) -> float:
        """Of the sample; at least two numbers are needed."""
        return max(self.squares, 0.0) / (self.count - 1)


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the true value lies with 95 % confidence."""

    start: float
    middle: float
    end: float


def welch(a: Sample, b: Sample) -> float:
    """Two-sided p-value of Welch's t-test that two means are equal. Both samples need two numbers at least."""
    error_a, error_b = a.variance / a.count, b.variance / b.count
    error = error_a + error_b
    if error == 0:
        return 1.0 if a.mean == b.mean else 0.0
    freedom = error**2 / (error_a**2 / (a.count - 1) + error_b**2 / (b.count - 1))
    return student_tail((a.mean - b.mean) / math.sqrt(error), freedom)


def proportions(successes_a: int, count_a: int, successes_b: int, count_b: int) -> float:
    """Two-sided p-value that two proportions are equal: Fisher's exact test for small counts, else the z-test."""
    total, successes = count_a + count_b, successes_a + successes_b
    pooled = successes / total
    if min(count_a, count_b) * min(pooled, 1 - pooled) < _FEW:
        return _fisher(successes_a, count_a, successes_b, count_b)
    error = math.sqrt(pooled * (1 - pooled) * (1 / count_a + 1 / count_b))
    return math.erfc(abs(successes_a / count_a - successes_b / count_b) / error / math.sqrt(2))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value that wins are as likely as losses."""
    total, more = wins + losses, max(wins, losses)
    return 1.0 if total == 0 else min(1.0, 2 * incomplete_beta(more, total - more + 1, 0.5))


def mean_interval(sample: Sample) -> Interval | None:
    """Of a mean; None for less than two numbers."""
    if sample.count < 2:
        return None
    half = _student_bound(sample.count - 1) * math.sqrt(sample.variance / sample.count)
    return Interval(sample.mean - half, sample.mean, sample.mean + half)


def proportion_interval(successes: float, count: int) -> Interval | None:
    """Wilson's, of a proportion; None without any try."""
    if count == 0:
        return None
    share, weight = successes / count, _Z**2 / count
    centre = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return Interval(max(0.0, centre - half), share, min(1.0, centre + half))


def student_tail(t: float, freedom: float) -> float:
    """Probability that Student's t lies at least as far from 0."""
    if freedom > _NORMAL_FROM:
        return math.erfc(abs(t) / math.sqrt(2))
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) for positive a and b, by its continued fraction."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    # The fraction converges fast on this side only; the other one is its mirror image.
    if x > (a + 1) / (a + b + 2):
        return 1.0 - front * _fraction(b, a, 1 - x) / b
    return front * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    """Lentz's evaluation of the continued fraction."""
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for step in range(1, _MAX_STEPS):
        for term in (
            step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step)),
            -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1)),
        ):
            d = 1 / _nonzero(1 + term * d)
            c = _nonzero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < _CLOSE:
            break
    return value


def _nonzero(number: float) -> float:
    return number if abs(number) > _TINY else _TINY


def _student_bound(freedom: float) -> float:
    """The t beyond which 5 % lie, both sides together."""
    low, high = 0.0, 20.0  # 12.7 for one degree of freedom
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > 1 - CONFIDENCE else (low, middle)
    return (low + high) / 2


def _fisher(successes_a: int, count_a: int, successes_b: int, count_b: int) -> float:
    """Sum of the probabilities of all tables with these margins that are no likelier than this one."""
    successes, total = successes_a + successes_b, count_a + count_b
    whole = _log_choose(total, successes)
    possible = range(max(0, successes - count_b), min(count_a, successes) + 1)
    logs = {n: _log_choose(count_a, n) + _log_choose(count_b, successes - n) - whole for n in possible}
    bound = logs[successes_a] + 1e-7  # equal likelihoods differ in their last digits
    return min(1.0, math.fsum(math.exp(value) for value in logs.values() if value <= bound))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
