"""Scalars under the names that clients use."""

from __future__ import annotations

from typing import Any, NewType

import strawberry
from strawberry.schema.config import StrawberryConfig
from strawberry.types.scalar import ScalarDefinition

from harmonia.errors import InvalidRequestError
from harmonia.server.services.moments import moment_text

IdOrKey = NewType("IdOrKey", str)
Key = NewType("Key", str)
Timestamp = NewType("Timestamp", int)
TimestampSec = NewType("TimestampSec", int)
LongInt = NewType("LongInt", int)
DateTimeText = NewType("DateTimeText", str)
InputDatetime = NewType("InputDatetime", object)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"expected a text, got {value!r}")
    return value


def _moment(value: Any) -> object:
    if not isinstance(value, str | int):
        raise InvalidRequestError(f"expected milliseconds since 1970 or a date as text, got {value!r}")
    return _long(value) if isinstance(value, int) else value


def _long(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value.bit_length() > 63:
        raise InvalidRequestError("expected a whole number of up to 64 bits")
    return value


SCALARS: dict[object, ScalarDefinition] = {
    IdOrKey: strawberry.scalar(
        name="IdOrKey", description="The id of an entity, or its key; of a user the e-mail.", parse_value=_text
    ),
    Key: strawberry.scalar(name="Key", description="A key that people choose.", parse_value=_text),
    Timestamp: strawberry.scalar(name="Timestamp", description="UTC milliseconds since 1970.", serialize=int),
    TimestampSec: strawberry.scalar(name="TimestampSec", description="UTC seconds since 1970.", serialize=int),
    LongInt: strawberry.scalar(
        name="LongInt", description="A whole number of up to 64 bits.", serialize=int, parse_value=_long
    ),
    DateTimeText: strawberry.scalar(name="DateTime", description="A moment as in RFC 3339."),
    InputDatetime: strawberry.scalar(
        name="InputDatetime",
        description="Milliseconds since 1970, a date, a moment as in RFC 3339, or `now - 1 month`.",
        parse_value=_moment,
    ),
}

CONFIG = StrawberryConfig(scalar_map=SCALARS)


def rfc3339(milliseconds: int) -> DateTimeText:
    """A moment as text."""
    return DateTimeText(moment_text(milliseconds))
