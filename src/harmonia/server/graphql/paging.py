"""Pages of long lists, their order, and the conditions that several areas filter by."""

from __future__ import annotations

from enum import Enum

import strawberry

from harmonia.server.graphql.scalars import IdOrKey, InputDatetime
from harmonia.server.services.figures.buckets import Span
from harmonia.server.services.keyset import Page, PageWish
from harmonia.server.services.moments import moment_ms


@strawberry.input
class CursorPageInput:
    """Which rows are wanted: those after or before a cursor, at most `first` or `last` of them."""

    first: int | None = None
    after: str | None = None
    before: str | None = None
    last: int | None = None
    offset: int | None = None

    @property
    def wish(self) -> PageWish:
        """For services."""
        return PageWish(self.first, self.after, self.before, self.last, self.offset)


@strawberry.type
class PageInfo:
    """Where a page stands in its list."""

    has_previous_page: bool
    has_next_page: bool
    start_cursor: str | None
    end_cursor: str | None

    @classmethod
    def of(cls, page: Page) -> PageInfo:
        """Of the rows that were read."""
        cursors = page.cursors
        first, last = (cursors[0], cursors[-1]) if cursors else (None, None)
        return cls(
            has_previous_page=page.has_previous, has_next_page=page.has_next, start_cursor=first, end_cursor=last
        )


@strawberry.enum
class SortDirection(Enum):
    """Smallest first, or largest first."""

    ASC = "ASC"
    DESC = "DESC"


@strawberry.input
class OrderPair:
    """A column to sort by, in snake case."""

    field: str
    order: SortDirection


@strawberry.input
class TimeRange:
    """From one moment to another."""

    from_: InputDatetime = strawberry.field(name="from")
    to: InputDatetime


def moments_of(timerange: TimeRange | None) -> tuple[int | None, int | None]:
    """Both in UTC milliseconds; None: at any time."""
    if timerange is None:
        return None, None
    return moment_ms(timerange.from_, "timerange.from"), moment_ms(timerange.to, "timerange.to")


def span_of(timerange: TimeRange | None) -> Span:
    """For figures: the end does not belong to it."""
    return Span(*moments_of(timerange))


@strawberry.input
class TextCondition:
    """What a text must be or hold."""

    eq: str | None = None
    contains: str | None = None


@strawberry.input
class IdOrKeyCondition:
    """What an entity must be, or must not be."""

    eq: IdOrKey | None = None
    in_: list[IdOrKey] | None = strawberry.field(name="in", default=None)
    neq: IdOrKey | None = None


@strawberry.type
class Label:
    """A word about something."""

    key: str
    value: str


@strawberry.input
class LabelInput:
    """A word about something."""

    key: str
    value: str


@strawberry.input
class LabelFilter:
    """Only what has a label of this key, with one of these values if any are given."""

    key: str
    value: list[str] | None = None
