"""Moments as callers write and read them."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta

from harmonia.errors import InvalidRequestError
from harmonia.server.db.base import now_ms

_UNITS = "second|minute|hour|day|week|month|quarter|year"
_RELATIVE = re.compile(rf"now((?:\s*[+-]\s*\d{{1,6}}\s*(?:{_UNITS})s?)*)", re.IGNORECASE)
_STEP = re.compile(rf"([+-])\s*(\d+)\s*({_UNITS})", re.IGNORECASE)
_MONTHS = {"month": 1, "quarter": 3, "year": 12}


def moment_ms(value: object, field: str, now: int | None = None) -> int:
    """UTC milliseconds since 1970 of a moment in any form that callers may use.

    value: milliseconds, `2025-01-31`, a moment as in RFC 3339 (UTC where it names no offset), or `now` with steps such
    as `now - 1 month + 2 days`. field: what to name in the `InvalidRequestError`. now: for `now`; None: this moment.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value.strip() if isinstance(value, str) else ""
    try:
        relative = _RELATIVE.fullmatch(text)
        if relative is not None:
            return _stepped(now_ms() if now is None else now, relative.group(1))
        moment = datetime.fromisoformat(text)
        return _milliseconds(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(
            f"{field}: {value!r} is no moment; give milliseconds since 1970, 2025-01-31, 2025-01-31T12:00:00Z or "
            "'now - 1 month'",
            field=field,
        ) from error


def moment_text(milliseconds: int) -> str:
    """A moment as in RFC 3339, in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat().replace("+00:00", "Z")


def _milliseconds(moment: datetime) -> int:
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))


def _stepped(start: int, steps: str) -> int:
    moment = datetime.fromtimestamp(start / 1000, UTC)
    for sign, number, unit in _STEP.findall(steps):
        count = int(sign + number)
        name = unit.lower()
        if name in _MONTHS:
            moment = _months_later(moment, count * _MONTHS[name])
        else:
            moment += timedelta(**{f"{name}s": count})
    return _milliseconds(moment)


def _months_later(moment: datetime, count: int) -> datetime:
    """The same day of another month, or its last day if it is shorter."""
    year, month = divmod(moment.year * 12 + moment.month - 1 + count, 12)
    if not 1 <= year <= 9999:
        raise ValueError(f"the year {year} is out of range")
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)
