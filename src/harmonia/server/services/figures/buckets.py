"""Calendar units as callers count them: hours, days and months of their time zone, as spans of UTC milliseconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import BigInteger, ColumnElement, case, literal_column
from sqlalchemy.orm import InstrumentedAttribute

from harmonia.errors import InvalidRequestError

HOUR, DAY, WEEK, MONTH, QUARTER, YEAR, WHOLE = "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR", "WHOLE"
"""WHOLE: one bucket for all of the time."""
MAX_BUCKETS = 10_000
"""Of one answer: an hour each, more than a year."""
MAX_RUNS = 2000
"""Of equal buckets in a row, a condition of the query each: two centuries by months."""
_HOUR_MS = 3_600_000
_LAST_MS = 253_402_300_799_999
"""The end of the year 9999."""
_BEYOND = "timerange: it lies beyond the calendar; give moments before the year 10000"
_MONTHS = {MONTH: 1, QUARTER: 3, YEAR: 12}


@dataclass(frozen=True, slots=True)
class Span:
    """From a moment on, up to another that does not belong to it; UTC milliseconds. None: the first and the last."""

    since: int | None = None
    until: int | None = None

    def __post_init__(self) -> None:
        if any(abs(moment or 0) > _LAST_MS for moment in (self.since, self.until)):
            raise InvalidRequestError(_BEYOND, field="timerange")
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise InvalidRequestError(
                f"timerange: it ends at {self.until}, which is not after its beginning at {self.since}; swap the two",
                field="timerange",
            )

    @property
    def before(self) -> Span | None:
        """As long a time right before it; None if it has no length."""
        if self.since is None or self.until is None:
            return None
        return Span(2 * self.since - self.until, self.since)

    @property
    def length_ms(self) -> int | None:
        """None if it has no beginning or no end."""
        return None if self.since is None or self.until is None else self.until - self.since

    def has(self, moment: InstrumentedAttribute[int]) -> list[ColumnElement[bool]]:
        """The conditions of a moment in it."""
        since = [] if self.since is None else [moment >= self.since]
        return since if self.until is None else [*since, moment < self.until]


ALWAYS = Span()
"""Without beginning and end."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """A span in pieces. starts: the first moment of each, ascending; the first may lie before the span."""

    starts: tuple[int, ...]

    def place(self, moment: InstrumentedAttribute[int]) -> ColumnElement[int]:
        """In which bucket of the span a row lies, from 0: to group by, so that the database sends a row for each.

        Months differ, and so do days twice a year, so there is a division for each run of equal lengths, the newest
        first. Numbers are written out: PostgreSQL takes bound values for different ones in SELECT and GROUP BY.
        """
        runs = [
            (moment >= _number(start), (moment - _number(start)) // _number(width) + _number(place))
            for place, start, width in _runs(self.starts)
        ]
        last = (moment >= _number(self.starts[-1]), _number(len(self.starts) - 1))
        return case(last, *reversed(runs), else_=_number(0))


def _number(value: int) -> ColumnElement[int]:
    return literal_column(str(value), BigInteger)


def _runs(starts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Place, start and length of the first bucket of each run of equal ones; the last bucket has no length here."""
    before = 0
    for place, (start, end) in enumerate(pairwise(starts)):
        if end - start != before:
            before = end - start
            yield place, start, before


def buckets_of(span: Span, unit: str, timezone: str | None = None) -> Buckets:
    """The buckets of a span whose ends are known, empty ones included.

    unit: one of the names above; weeks begin on Mondays. timezone: a name such as `Europe/Paris`; None: UTC.
    `InvalidRequestError` for zones that nobody knows and for more than `MAX_BUCKETS`.
    """
    assert span.since is not None and span.until is not None
    zone = _zone(timezone)
    starts: list[int] = []
    for start in _starts(span.since, unit, zone):
        if start >= span.until:
            break
        if len(starts) == MAX_BUCKETS:
            raise InvalidRequestError(
                f"timerange: it has more than {MAX_BUCKETS} times {unit}; ask for less time, or in larger units",
                field="timerange",
            )
        starts.append(start)
    if sum(1 for _ in _runs(starts)) > MAX_RUNS:
        raise InvalidRequestError(
            f"timerange: {len(starts)} times {unit} are too many; ask for less time", field="timerange"
        )
    return Buckets(tuple(starts))


def _zone(name: str | None) -> tzinfo:
    try:
        return UTC if name is None else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidRequestError(
            f"timezone: {name!r:.80} is none that this server knows; give a name such as 'Europe/Paris' or 'UTC'",
            field="timezone",
        ) from error


def _starts(since: int, unit: str, zone: tzinfo) -> Iterator[int]:
    """Without end, but for the calendar's; the first holds `since`."""
    if unit == WHOLE:
        yield since
        return
    try:
        local = datetime.fromtimestamp(since / 1000, zone)
        if unit == HOUR:
            start = since - (local.minute * 60_000 + local.second * 1000 + local.microsecond // 1000)
            while True:
                yield start
                start += _HOUR_MS
        day = _first_day(local.date(), unit)
        while True:
            yield round(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp() * 1000)
            day = _next_day(day, unit)
    except (OverflowError, ValueError, OSError) as error:
        raise InvalidRequestError(_BEYOND, field="timerange") from error


def _first_day(day: date, unit: str) -> date:
    if unit == WEEK:
        return day - timedelta(days=day.weekday())
    if unit in _MONTHS:
        return date(day.year, (day.month - 1) // _MONTHS[unit] * _MONTHS[unit] + 1, 1)
    return day


def _next_day(day: date, unit: str) -> date:
    if unit in _MONTHS:
        years, month = divmod(day.month - 1 + _MONTHS[unit], 12)
        return date(day.year + years, month + 1, 1)
    return day + timedelta(days=7 if unit == WEEK else 1)
