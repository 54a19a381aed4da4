"""Long lists, a page at a time."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from harmonia.errors import InvalidRequestError

DEFAULT_SIZE = 100
"""Rows of a page where nobody says how many."""
MAX_SIZE = 1000
"""Rows of a page at most."""
_PREFIX = "row:"
_MAX_PLACE = 2**31


@dataclass(frozen=True, slots=True)
class PageWish:
    """Which rows of a list are wanted. Cursors are opaque; what is None does not count."""

    first: int | None = None
    after: str | None = None
    before: str | None = None
    last: int | None = None
    offset: int | None = None

    def window(self, total: int) -> Window:
        """The rows of a list of `total`; `InvalidRequestError` for numbers and cursors that make no sense."""
        for name, value in (("first", self.first), ("last", self.last)):
            if value is not None and not 0 <= value <= MAX_SIZE:
                raise InvalidRequestError(f"{name} must be from 0 to {MAX_SIZE}, got {value}", field=name)
        if self.offset is not None and self.offset < 0:
            raise InvalidRequestError(f"offset must be at least 0, got {self.offset}", field="offset")
        start = (0 if self.after is None else _place(self.after, "after") + 1) + (self.offset or 0)
        end = total if self.before is None else min(total, _place(self.before, "before"))
        if self.last is not None and self.first is None:
            return Window(max(start, end - self.last), max(start, end), total)
        return Window(start, max(start, min(end, start + (DEFAULT_SIZE if self.first is None else self.first))), total)


@dataclass(frozen=True, slots=True)
class Window:
    """Rows `start` to `end`, exclusive, of `total`."""

    start: int
    end: int
    total: int

    @property
    def size(self) -> int:
        """How many rows to read."""
        return self.end - self.start

    @property
    def cursors(self) -> list[str]:
        """Of the rows, by their places."""
        return [cursor(place) for place in range(self.start, self.end)]

    @property
    def has_next(self) -> bool:
        """Whether rows follow."""
        return self.end < self.total

    @property
    def has_previous(self) -> bool:
        """Whether rows come before."""
        return 0 < self.start and self.total > 0


def cursor(place: int) -> str:
    """The cursor of a row, by its place from 0."""
    return base64.urlsafe_b64encode(f"{_PREFIX}{place}".encode()).decode()


def _place(text: str, field: str) -> int:
    try:
        plain = base64.urlsafe_b64decode(text.encode()).decode()
        if plain.startswith(_PREFIX) and 0 <= (place := int(plain.removeprefix(_PREFIX))) < _MAX_PLACE:
            return place
    except (ValueError, binascii.Error):
        pass
    raise InvalidRequestError(f"{text!r} is no cursor; give one that an earlier page named", field=field)
