"""Long lists, a page at a time.

Cursors name a row by its values, so that rows which come in meanwhile shift nothing.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, and_, or_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from harmonia.errors import InvalidRequestError

Column = ColumnElement[Any] | InstrumentedAttribute[Any]
Values = tuple[Any, ...]

DEFAULT_SIZE = 100
"""Rows of a page where nobody says how many."""
MAX_SIZE = 1000
"""Rows of a page at most."""


@dataclass(frozen=True, slots=True)
class PageWish:
    """Which rows of a list are wanted. Cursors are opaque; what is None does not count."""

    first: int | None = None
    after: str | None = None
    before: str | None = None
    last: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A column to sort by."""

    field: str
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """The rows that were read, and where they stand."""

    rows: list[Any]
    cursors: list[str]
    has_next: bool
    has_previous: bool


class Keyset:
    """The order of a list.

    columns: what callers may sort by, by name; none of them may ever be null. orders: what they chose. last: the column
    that tells all rows apart.
    """

    def __init__(self, columns: Mapping[str, Column], orders: Sequence[Order], last: str) -> None:
        unknown = next((order.field for order in orders if order.field not in columns), None)
        if unknown is not None:
            names = ", ".join(sorted(columns))
            raise InvalidRequestError(f"{unknown!r} is nothing to order by; choose from {names}", field="order")
        chosen: dict[str, bool] = {}
        for order in orders:
            chosen.setdefault(order.field, order.descending)
        chosen.setdefault(last, next(iter(chosen.values()), False))
        self._columns = [(columns[name], descending) for name, descending in chosen.items()]
        self._kind = ",".join(f"-{name}" if descending else name for name, descending in chosen.items())

    async def read(self, session: AsyncSession, query: Select[*tuple[Any, ...]], wish: PageWish) -> Page:
        """One page of a query, whose columns come first in each row."""
        size, backward = _size(wish)
        query = query.add_columns(*(column for column, _ in self._columns))
        if wish.after is not None:
            query = query.where(self._beyond(self._values(wish.after, "after"), before=False))
        if wish.before is not None:
            query = query.where(self._beyond(self._values(wish.before, "before"), before=True))
        query = query.order_by(
            *(column.desc() if descending != backward else column.asc() for column, descending in self._columns)
        )
        found = (await session.execute(query.offset(wish.offset or 0).limit(size + 1))).all()
        is_more = len(found) > size
        rows = found[:size][::-1] if backward else found[:size]
        skipped = bool(wish.offset)
        has_next, has_previous = (
            (wish.before is not None or skipped, is_more)
            if backward
            else (
                is_more,
                wish.after is not None or skipped,
            )
        )
        width = len(self._columns)
        cursors = [self._cursor(tuple(row[-width:])) for row in rows]
        return Page([row[:-width] for row in rows], cursors, has_next, has_previous)

    def _beyond(self, values: Values, *, before: bool) -> ColumnElement[bool]:
        """Rows after a row in this order, or before it."""
        cases = []
        for place, (column, descending) in enumerate(self._columns):
            equal = [other == value for (other, _), value in zip(self._columns[:place], values, strict=False)]
            further = column < values[place] if descending != before else column > values[place]
            cases.append(and_(*equal, further))
        return or_(*cases)

    def _cursor(self, values: Values) -> str:
        return base64.urlsafe_b64encode(msgspec.json.encode([self._kind, *values])).decode()

    def _values(self, cursor: str, field: str) -> Values:
        types: list[type] = [column.type.python_type for column, _ in self._columns]
        try:
            kind, *values = msgspec.json.decode(base64.urlsafe_b64decode(cursor.encode()), type=list[Any])
            if kind == self._kind and len(values) == len(types):
                return tuple(_typed(value, cls) for value, cls in zip(values, types, strict=True))
        except (ValueError, binascii.Error, msgspec.DecodeError):
            pass
        raise InvalidRequestError(
            f"{field}: {cursor!r} is no cursor of a list in this order; give one that an earlier page named",
            field=field,
        )


def _typed(value: object, cls: type) -> object:
    if cls is uuid.UUID and isinstance(value, str):
        return uuid.UUID(value)
    if not isinstance(value, cls) or (isinstance(value, int) and abs(value) >= 2**63):
        raise ValueError(f"{value!r} is no {cls.__name__}")
    return value


def _size(wish: PageWish) -> tuple[int, bool]:
    """How many rows, and whether they are counted from the end."""
    for name, value in (("first", wish.first), ("last", wish.last)):
        if value is not None and not 0 <= value <= MAX_SIZE:
            raise InvalidRequestError(f"{name} must be from 0 to {MAX_SIZE}, got {value}", field=name)
    if wish.offset is not None and wish.offset < 0:
        raise InvalidRequestError(f"offset must be at least 0, got {wish.offset}", field="offset")
    if wish.last is not None and wish.first is None:
        return wish.last, True
    return DEFAULT_SIZE if wish.first is None else wish.first, False
