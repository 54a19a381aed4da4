"""GraphQL documents made from the types of their results.

A struct is its own selection: what it has no field for is never asked for. States and kinds in results are plain
strings, so that a server that knows a further one can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T")

TYPENAME = "__typename"
"""The field that tells the members of a union apart."""


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Part of an answer, read-only. Moments are UTC milliseconds since 1970 unless a field says otherwise."""


class Member(Result, frozen=True, tag_field=TYPENAME, tag=True):
    """Part of an answer that may be one of several; a subclass is called as the type of the schema."""


def chosen(**extra: str) -> msgspec.Meta:
    """Notes for the selection of a field: `field`, its name in the schema; `arguments`, what it is asked with."""
    return msgspec.Meta(extra=dict(extra))


@dataclass(frozen=True)
class Operation(Generic[T]):
    """One field of the schema's root, asked for with variables that are named as its arguments."""

    kind: Literal["query", "mutation"]
    field: str
    result: Any
    """The type that the answer is read as: `T`."""
    arguments: tuple[tuple[str, str], ...] = ()
    """Names and GraphQL types."""
    inner: tuple[tuple[str, str], ...] = ()
    """The same for variables that fields of the result are asked with; see `chosen`."""

    def with_inner(self, **inner: str) -> Operation[T]:
        """The same with variables for fields of the result."""
        return replace(self, inner=tuple(inner.items()))

    @property
    def name(self) -> str:
        """What the document calls itself."""
        return self.field[0].upper() + self.field[1:]

    @property
    def document(self) -> str:
        """The text that is sent."""
        declared = ", ".join(f"${name}: {kind}" for name, kind in (*self.arguments, *self.inner))
        passed = ", ".join(f"{name}: ${name}" for name, _ in self.arguments)
        head = f"{self.kind} {self.name}{f'({declared})' if declared else ''}"
        return f"{head} {{ {self.field}{f'({passed})' if passed else ''} {selection(self.result)}}}"


def query(field: str, result: type[T], **arguments: str) -> Operation[T]:
    """A query whose answer is never null."""
    return Operation("query", field, result, tuple(arguments.items()))


def optional(field: str, result: type[T], **arguments: str) -> Operation[T | None]:
    """A query that answers null for what is not there."""
    return Operation("query", field, result | None, tuple(arguments.items()))


def mutation(field: str, result: type[T], **arguments: str) -> Operation[T]:
    """A change."""
    return Operation("mutation", field, result, tuple(arguments.items()))


def given(**values: object) -> dict[str, Any]:
    """The values that are not None: the server takes a null as "not given", so it need not be sent."""
    return {name: value for name, value in values.items() if value is not None}


def selection(result: Any) -> str:
    """The fields of a type in GraphQL's words; empty for plain values."""
    return _selection(inspect.type_info(result))


def _selection(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata(type=inner) | inspect.ListType(item_type=inner):
            return _selection(inner)
        case inspect.StructType():
            return f"{{ {_fields(info)}}} "
        case inspect.UnionType(types=members):
            structs = [member for member in members if isinstance(member, inspect.StructType)]
            if any(struct.tag_field == TYPENAME for struct in structs):
                return f"{{ {TYPENAME} {''.join(_fragments(structs))}}} "
            return "".join(_selection(member) for member in members)
        case _:
            return ""


def _fields(struct: inspect.StructType) -> str:
    return "".join(_field(field) for field in struct.fields)


def _field(field: inspect.Field) -> str:
    notes = (field.type.extra or {}) if isinstance(field.type, inspect.Metadata) else {}
    alias = f"{field.encode_name}: " if "field" in notes else ""
    name = notes.get("field", field.encode_name)
    return f"{alias}{name}{notes.get('arguments', '')} {_selection(field.type)}"


def _fragments(structs: list[inspect.StructType]) -> Iterator[str]:
    for struct in structs:
        if struct.fields:
            yield f"... on {struct.tag} {{ {_fields(struct)}}} "
