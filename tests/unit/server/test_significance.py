"""The statistics of A/B tests against values from tables and textbooks."""

from __future__ import annotations

import math

import pytest

from harmonia.server.services.abtests.significance import (
    Sample,
    incomplete_beta,
    mean_interval,
    proportion_interval,
    proportions,
    sign_test,
    student_tail,
    welch,
)


def sample(*numbers: float) -> Sample:
    mean = math.fsum(numbers) / len(numbers)
    return Sample(len(numbers), mean, math.fsum((number - mean) ** 2 for number in numbers))


@pytest.mark.parametrize(
    ("t", "freedom", "expected"),
    [
        (12.706204736, 1, 0.05),
        (2.228138852, 10, 0.05),
        (3.169272673, 10, 0.01),
        (2.042272456, 30, 0.05),
        (-1.983971519, 100, 0.05),
        (1.959963985, 1e9, 0.05),
        (0.0, 7, 1.0),
    ],
)
def test_students_tail_is_that_of_the_tables(t: float, freedom: float, expected: float) -> None:
    assert student_tail(t, freedom) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("a", "b", "x", "expected"),
    [
        (1, 1, 0.3, 0.3),
        (2, 3, 0.5, 0.6875),
        (5, 2, 0.8, 0.65536),
        (0.5, 0.5, 0.25, 1 / 3),
        (3, 4, 0.0, 0.0),
        (3, 4, 1.0, 1.0),
        (50_000, 50_000, 0.5, 0.5),
    ],
)
def test_the_incomplete_beta_function(a: float, b: float, x: float, expected: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(expected, rel=1e-9)


def test_welch() -> None:
    a = sample(27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4)
    b = sample(27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 30.0, 23.9)
    assert welch(a, b) == welch(b, a) == pytest.approx(0.00803, abs=2e-3)
    assert welch(sample(1, 2, 3), sample(1, 2, 3)) == pytest.approx(1.0)
    assert welch(sample(1, 1), sample(1, 1)) == 1.0
    assert welch(sample(1, 1), sample(2, 2)) == 0.0


def test_proportions_are_compared_exactly_where_they_are_few() -> None:
    assert proportions(3, 4, 1, 4) == pytest.approx(34 / 70)  # Fisher's lady and her tea
    assert proportions(1, 10, 11, 14) == pytest.approx(0.002759456, rel=1e-6)
    assert proportions(0, 30, 0, 30) == proportions(30, 30, 30, 30) == 1.0
    assert proportions(300, 1000, 350, 1000) == pytest.approx(0.0169842, rel=1e-5)


def test_the_sign_test() -> None:
    assert sign_test(8, 2) == sign_test(2, 8) == pytest.approx(0.109375)
    assert sign_test(10, 0) == pytest.approx(2 / 2**10)
    assert sign_test(0, 0) == sign_test(5, 5) == 1.0


def test_intervals() -> None:
    interval = mean_interval(sample(1, 2, 3, 4, 5))
    assert interval is not None
    assert (interval.start, interval.middle, interval.end) == pytest.approx((1.036757, 3.0, 4.963243), abs=1e-6)
    share = proportion_interval(8, 10)
    assert share is not None
    assert (share.start, share.middle, share.end) == pytest.approx((0.490162, 0.8, 0.943318), abs=1e-6)
    assert mean_interval(sample(1)) is None
    assert proportion_interval(0, 0) is None
