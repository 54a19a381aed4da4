"""JSON schemas (2020-12) as classes of data are described by them, and what of a value does not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, cast

from pydantic import StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from harmonia.errors import InvalidRequestError

_MAX_CHECKS = 100_000
"""Of one value; a schema that refers to itself may want any number of them."""
_UNKNOWN = frozenset(
    [
        "$dynamicRef",
        "$recursiveRef",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "dependentSchemas",
        "dependentRequired",
        "dependencies",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)
"""Keywords that say something about values and are not read here: a schema with one of them is refused."""

Schema = Mapping[str, Any] | bool
Problems = Iterator[tuple[str, str]]
"""Places in the value, and what is wrong there."""


class SchemaChecker:
    """Checks values against one schema. Texts in an unknown `format` pass, as the standard has it."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._left = 0

    def problem(self, value: object) -> str | None:
        """What is wrong with a value, its place first; None: it fits.

        `InvalidRequestError` if the schema itself is at fault, or has keywords that are not read here.
        """
        self._left = _MAX_CHECKS
        try:
            found = next(self._check(self._root, value, ""), None)
        except RecursionError:
            raise InvalidRequestError("the schema refers to itself without an end") from None
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InvalidRequestError(f"the schema is none that can be read: {error!r}") from error
        return None if found is None else f"{found[0] or 'the metadata'}: {found[1]}"

    def _check(self, schema: Schema, value: object, place: str) -> Problems:
        self._left -= 1
        if self._left < 0:
            raise InvalidRequestError(f"the schema wants more than {_MAX_CHECKS} checks of one value; simplify it")
        if isinstance(schema, bool):
            if not schema:
                yield place, "nothing may be here"
            return
        for keyword in sorted(_UNKNOWN & schema.keys()):
            raise InvalidRequestError(f"the schema has the keyword {keyword!r}, which is not read here")
        yield from _typed(schema, value, place)
        yield from self._combined(schema, value, place)
        if isinstance(value, dict):
            yield from self._object(schema, value, place)
        elif isinstance(value, list):
            yield from self._list(schema, value, place)
        elif isinstance(value, str):
            yield from _text(schema, value, place)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield from _number(schema, value, place)

    def _referred(self, reference: str) -> Schema:
        path, found = reference.split("/"), cast(Any, self._root)
        if path[0] != "#":
            raise InvalidRequestError(f"the schema refers to {reference!r}; only what is inside of it can be read")
        for name in path[1:]:
            found = found[name.replace("~1", "/").replace("~0", "~")]
        return cast(Schema, found)

    def _fits(self, schema: Schema, value: object) -> bool:
        return next(self._check(schema, value, ""), None) is None

    def _combined(self, schema: Mapping[str, Any], value: object, place: str) -> Problems:
        if "$ref" in schema:
            yield from self._check(self._referred(schema["$ref"]), value, place)
        for each in schema.get("allOf", ()):
            yield from self._check(each, value, place)
        if "anyOf" in schema and not any(self._fits(each, value) for each in schema["anyOf"]):
            yield place, f"{_shown(value)} is none of {_shown(schema['anyOf'])}"
        if "oneOf" in schema and sum(self._fits(each, value) for each in schema["oneOf"]) != 1:
            yield place, f"{_shown(value)} is not exactly one of {_shown(schema['oneOf'])}"
        if "not" in schema and self._fits(schema["not"], value):
            yield place, f"{_shown(value)} must not be {_shown(schema['not'])}"

    def _object(self, schema: Mapping[str, Any], value: dict[str, Any], place: str) -> Problems:
        for name in schema.get("required", ()):
            if name not in value:
                yield place, f"{name!r} is missing"
        yield from _bounded(schema, "Properties", len(value), "entries", place)
        properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, item in value.items():
            inner = f"{place}.{name}".lstrip(".")
            own = [properties[name]] if name in properties else []
            own += [each for pattern, each in patterns.items() if _matches(pattern, name)]
            for each in own or [schema.get("additionalProperties", True)]:
                if each is False:
                    yield place, f"there is no {name!r} in the schema"
                else:
                    yield from self._check(each, item, inner)

    def _list(self, schema: Mapping[str, Any], value: list[Any], place: str) -> Problems:
        yield from _bounded(schema, "Items", len(value), "items", place)
        if schema.get("uniqueItems") and len({json.dumps(item, sort_keys=True) for item in value}) < len(value):
            yield place, "its items must differ"
        first = schema.get("prefixItems", ())
        for index, item in enumerate(value):
            each = first[index] if index < len(first) else schema.get("items", True)
            yield from self._check(each, item, f"{place}[{index}]")


_TYPES: dict[str, Callable[[object], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: type(value) is int or (isinstance(value, float) and value.is_integer()),
}


def _typed(schema: Mapping[str, Any], value: object, place: str) -> Problems:
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(_TYPES[name](value) for name in names):
            yield place, f"{_shown(value)} is no {' or '.join(names)}"
    for keyword, values in (("enum", schema.get("enum")), ("const", [schema.get("const")])):
        if keyword in schema and not any(_same(value, each) for each in values or ()):
            yield place, f"{_shown(value)} is not {' or '.join(map(_shown, values or ()))}"


def _same(one: object, other: object) -> bool:
    """Whether two values are equal in JSON, where true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _text(schema: Mapping[str, Any], value: str, place: str) -> Problems:
    yield from _bounded(schema, "Length", len(value), "characters", place)
    if "pattern" in schema and not _matches(schema["pattern"], value):
        yield place, f"{_shown(value)} does not match {schema['pattern']!r}"


def _number(schema: Mapping[str, Any], value: float, place: str) -> Problems:
    low, above = schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf)
    high, below = schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf)
    if not (low <= value <= high and above < value < below):
        limits = {key: schema[key] for key in schema if key.lower().endswith(("minimum", "maximum"))}
        yield place, f"{_shown(value)} is beyond the limits {_shown(limits)}"
    step = schema.get("multipleOf")
    if step is not None and Fraction(str(value)) % Fraction(str(step)):  # 0.3 is three times 0.1
        yield place, f"{_shown(value)} is no multiple of {step}"


def _bounded(schema: Mapping[str, Any], what: str, size: int, unit: str, place: str) -> Problems:
    if not schema.get(f"min{what}", 0) <= size <= schema.get(f"max{what}", math.inf):
        least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}", "any number of")
        yield place, f"it has {size} {unit}, and may have {least} to {most}"


def _matches(pattern: str, text: str) -> bool:
    try:
        _pattern(pattern).validate_python(text)
    except ValidationError:
        return False
    return True


@lru_cache(maxsize=256)
def _pattern(pattern: str) -> TypeAdapter[str]:
    """By Rust's expressions, which take a time that grows only with the text: these come from other people."""
    try:
        return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
    except SchemaError as error:
        raise InvalidRequestError(f"the schema has a pattern that cannot be read: {pattern!r:.80}") from error


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
