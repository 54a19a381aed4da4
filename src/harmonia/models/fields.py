"""Typed reading of configuration values that strangers wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from harmonia.errors import UnsupportedModelError


class Fields:
    """Named values of one origin (a file), read with their types checked.

    Every getter takes a default for absent or null values; without one the value is required.
    Errors: UnsupportedModelError naming origin, key and what was found.
    """

    def __init__(self, values: Mapping[str, object], origin: str) -> None:
        self.values = values
        self.origin = origin

    def has(self, key: str) -> bool:
        """Present and not null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A whole number of at least `minimum`."""
        value = self._get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "a whole number", value)
        if value < minimum:
            raise self._wrong(key, f"at least {minimum}", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise self._wrong(key, "a number", value)
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers, or one of them; absent: none."""
        value = self.values.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            raise self._wrong(key, "whole numbers", value)
        return tuple(cast("list[int]", items))

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers; absent: none."""
        value = self.values.get(key)
        items = [] if value is None else value
        if not isinstance(items, list) or not all(isinstance(item, int | float) for item in items):
            raise self._wrong(key, "a list of numbers", value)
        return tuple(items)

    def strings(self, key: str) -> list[str]:
        """A list of strings; absent: empty."""
        value = self.values.get(key)
        items = [] if value is None else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self._wrong(key, "a list of strings", value)
        return items

    def section(self, key: str) -> Fields:
        """A nested object; absent: empty."""
        value = self.values.get(key)
        if value is None:
            return Fields({}, f"{self.origin}: {key}")
        if not isinstance(value, dict):
            raise self._wrong(key, "an object", value)
        return Fields(value, f"{self.origin}: {key}")

    def unsupported(self, key: str, value: object, supported: str) -> UnsupportedModelError:
        """The error that says which value cannot be handled, and which could."""
        message = f"{self.origin}: {key} = {value!r} is not supported. Supported: {supported}."
        return UnsupportedModelError(message, file=self.origin, field=key)

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise UnsupportedModelError(f"{self.origin}: {key!r} is missing", file=self.origin, field=key)
        return value

    def _wrong(self, key: str, expected: str, found: object) -> UnsupportedModelError:
        message = f"{self.origin}: {key!r} must be {expected}, found {found!r:.200}"
        return UnsupportedModelError(message, file=self.origin, field=key)


def read_json(path: Path) -> Fields:
    """The object in a JSON file. Errors: UnsupportedModelError naming the file."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UnsupportedModelError(f"{path}: cannot be read ({error.strerror})", file=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(f"{path}: not valid JSON ({error})", file=str(path)) from error
    if not isinstance(value, dict):
        raise UnsupportedModelError(f"{path}: expected a JSON object, found {type(value).__name__}", file=str(path))
    return Fields(value, str(path))


def read_optional_json(path: Path) -> Fields:
    """As `read_json`; an absent file is an empty object."""
    return read_json(path) if path.exists() else Fields({}, str(path))
