"""Moments in every form that callers may use."""

from __future__ import annotations

import pytest

from harmonia.errors import InvalidRequestError
from harmonia.server.services.moments import moment_ms

NOW = 1_743_379_200_000
"""2025-03-31T00:00:00Z"""
DAY = 86_400_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (-5, -5),
        (NOW, NOW),
        ("2025-03-31", NOW),
        (" 2025-03-31T00:00:00Z ", NOW),
        ("2025-03-31T02:00:00+02:00", NOW),
        ("2025-03-31T00:00:00.250", NOW + 250),
        ("now", NOW),
        ("NOW - 1 Day", NOW - DAY),
        ("now-2weeks", NOW - 14 * DAY),
        ("now - 1 month", 1_740_700_800_000),  # the last day of February
        ("now + 1 quarter", 1_751_241_600_000),
        ("now - 1 year - 31 days", NOW - (365 + 31) * DAY),
        ("now + 90 seconds - 1 minute", NOW + 30_000),
    ],
)
def test_moments_are_understood(value: object, expected: int) -> None:
    assert moment_ms(value, "from", NOW) == expected


@pytest.mark.parametrize(
    "value", ["", "soon", "now -", "now - 1", "now - 1 fortnight", "31/03/2025", "now - 9999 years", True, 1.5, None]
)
def test_others_are_refused_with_what_would_do(value: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"from: .* is no moment; give .*'now - 1 month'"):
        moment_ms(value, "from", NOW)
