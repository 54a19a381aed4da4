"""Command line flags of a recipe, made from the JSON schema of its configuration."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harmonia.errors import InvalidRequestError

Schema = Mapping[str, Any]

HELP = ("--help", "-h")
"""Words that ask for the flags instead."""
_VARIANT = "union_variant"
_MISSING = object()
_DEEPEST = 4
_OTHERS = "(without the `--`, `--help` shows the options of the command itself)"
_METAVARS = {"integer": "INTEGER", "number": "NUMBER", "boolean": "BOOLEAN", "string": "TEXT"}


@dataclass(frozen=True)
class Flag:
    """One parameter of a recipe. `model.tp` of a nested configuration is `--model.tp`."""

    path: tuple[str, ...]
    schemas: tuple[Schema, ...]
    """What a value may be: the members of a union, without null; those of one item for a list."""
    is_list: bool = False
    is_nullable: bool = False
    required: bool = False
    default: object = _MISSING
    title: str = ""
    description: str = ""

    @property
    def name(self) -> str:
        """As typed, without the dashes."""
        return ".".join(self.path).replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether `--x` and `--no-x` stand alone, without a value."""
        return not self.is_list and all(schema.get("type") == "boolean" for schema in self.schemas)

    @property
    def choices(self) -> tuple[object, ...]:
        """The only values allowed; empty: any."""
        each = [schema.get("enum", [schema["const"]] if "const" in schema else None) for schema in self.schemas]
        return () if None in each else tuple(choice for choices in each for choice in choices)

    @property
    def usage(self) -> str:
        """As help shows it."""
        if self.is_switch:
            *parents, last = self.name.split(".")
            return f"--{self.name} / --{'.'.join([*parents, f'no-{last}'])}"
        kinds = dict.fromkeys(_METAVARS.get(schema.get("type", ""), "JSON") for schema in self.schemas)
        shown = "|".join(str(choice) for choice in self.choices) or "|".join(kinds)
        return f"--{self.name} {shown}{' (repeat for more)' if self.is_list else ''}"


Configuration = type[BaseModel] | Schema
"""What a recipe takes: the class, or the JSON schema that a server has of it."""


def flags_of(config: Configuration) -> list[Flag]:
    """The flags of a recipe's configuration, in the order of its fields."""
    schema = config if isinstance(config, Mapping) else config.model_json_schema()
    definitions = schema.get("$defs", {})
    (own,) = _members(schema, definitions)  # one that holds itself is among the definitions
    return list(_flags(own, definitions, (), required=True))


def parse_flags(config: Configuration | None, argv: Sequence[str]) -> dict[str, Any]:
    """The values that flags give, nested as the configuration is; None takes no flags.

    Values are converted to the types that the schema names, and validated later with the whole configuration. A list is
    given by repeating its flag. InvalidRequestError for an unknown flag, naming the nearest, and for a value that
    cannot be converted.
    """
    known = {} if config is None else {flag.name: flag for flag in flags_of(config)}
    values: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise InvalidRequestError(f"unexpected {word!r}; parameters of a recipe are given as --name value")
        name, has_value, text = word.removeprefix("--").partition("=")
        flag, negated = _find(known, name.replace("_", "-"))
        if negated and has_value:
            raise InvalidRequestError(f"--{name} takes no value", field=flag.name)
        if flag.is_switch and not has_value:
            if rest and not rest[0].startswith("--"):
                raise InvalidRequestError(
                    f"--{name} takes no value, got {rest[0]!r}; give {flag.usage.replace(' / ', ' or ')}",
                    field=flag.name,
                )
            _store(values, flag, not negated)
            continue
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise InvalidRequestError(f"--{name} wants a value: {flag.usage}", field=flag.name)
            text = rest.pop(0)
        _store(values, flag, _convert(flag, text))
    return values


def overlay(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` on top, nested field by nested field."""
    merged = dict(values)
    for name, change in changes.items():
        old = merged.get(name)
        both = isinstance(old, Mapping) and isinstance(change, Mapping)
        merged[name] = overlay(old, change) if both else change  # type: ignore[arg-type]
    return merged


def read_values(file: Path) -> dict[str, Any]:
    """The parameters in a file of JSON; InvalidRequestError if it does not hold an object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"--config {file} cannot be read: {error}", field="config") from error
    if not isinstance(values, dict):
        raise InvalidRequestError(f"--config {file} must hold a JSON object, not {values!r}", field="config")
    return values


def print_help(console: Console, recipe: str, summary: str, config: Configuration | None, command: str = "run") -> None:
    """What a recipe does and takes, and how `harmonia COMMAND` starts it."""
    console.print(f"[bold]{escape(recipe)}[/bold]{f': {escape(summary)}' if summary else ''}\n")
    flags = [] if config is None else flags_of(config)
    if not flags:
        console.print("It takes no parameters.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for flag in sorted(flags, key=lambda flag: not flag.required):
        mark = "[red]required[/red]" if flag.required else f"[dim]{escape(_shown(flag.default))}[/dim]"
        words = ". ".join(part.rstrip(".") for part in (flag.title, flag.description) if part)
        table.add_row(f"[cyan]{escape(flag.usage)}[/cyan]", f"{escape(words)} {mark}".strip())
    console.print(table)
    console.print(f"\n[dim]harmonia {command} {escape(recipe)} {escape(_example(flags))}[/dim]", soft_wrap=True)


# --------------------------------------------------------------------------------------------------- from the schema


def _flags(
    schema: Schema, definitions: Schema, path: tuple[str, ...], required: bool, default: object = None
) -> Iterator[Flag]:
    needed = schema.get("required", ()) if required else ()
    defaults = default if isinstance(default, Mapping) else {}
    for name, field in schema.get("properties", {}).items():
        if name == _VARIANT and "const" in field:
            continue  # there is nothing to choose
        shown = {**field, "default": defaults[name]} if name in defaults else field
        yield from _field(shown, definitions, (*path, name), name in needed)


def _field(field: Schema, definitions: Schema, path: tuple[str, ...], required: bool) -> Iterator[Flag]:
    members = list(_members(field, definitions))
    schemas = [member for member in members if member.get("type") != "null"]
    nested = [schema for schema in schemas if schema.get("properties")]
    if nested and len(nested) == len(schemas) and len(path) < _DEEPEST:
        yield from _nested(nested, definitions, path, required, field.get("default"))
        return
    is_list = [schema.get("type") for schema in schemas] == ["array"]
    yield Flag(
        path=path,
        schemas=tuple(_members(schemas[0].get("items", {}), definitions) if is_list else schemas),
        is_list=is_list,
        is_nullable=len(schemas) < len(members),
        required=required,
        default=field.get("default", _MISSING),
        title=_title(path[-1], field),
        description=field.get("description") or (schemas[0].get("description", "") if len(schemas) == 1 else ""),
    )


def _title(name: str, field: Schema) -> str:
    """The title that the recipe's author gave; the one that pydantic makes of the name says nothing more."""
    title = str(field.get("title", ""))
    return "" if title.casefold() == name.replace("_", " ").casefold() else title


def _nested(
    variants: Sequence[Schema], definitions: Schema, path: tuple[str, ...], required: bool, default: object
) -> Iterator[Flag]:
    """Flags of a configuration inside a configuration; of all of them where it may be one of several."""
    if len(variants) > 1:
        choices = [variant["properties"].get(_VARIANT, {}).get("const") for variant in variants]
        enum = {"type": "string", "enum": [choice for choice in choices if choice is not None]}
        chosen = default.get(_VARIANT, _MISSING) if isinstance(default, Mapping) else _MISSING
        yield Flag((*path, _VARIANT), (enum,), required=required, default=chosen, title="Which of them")
    seen: set[tuple[str, ...]] = set()
    for variant in variants:
        for flag in _flags(variant, definitions, path, required and len(variants) == 1, default):
            if flag.path not in seen:
                seen.add(flag.path)
                yield flag


def _members(schema: Schema, definitions: Schema) -> Iterator[Schema]:
    """The alternatives of a schema, references resolved."""
    if "$ref" in schema:
        yield from _members(definitions[schema["$ref"].rsplit("/", maxsplit=1)[-1]], definitions)
        return
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            for member in schema[union]:
                yield from _members(member, definitions)
            return
    yield schema


# -------------------------------------------------------------------------------------------------- from the shell


def _find(known: Mapping[str, Flag], name: str) -> tuple[Flag, bool]:
    """The flag of that name, and whether it was negated."""
    if name in known:
        return known[name], False
    *parents, last = name.split(".")
    positive = known.get(".".join([*parents, last.removeprefix("no-")]))
    if last.startswith("no-") and positive is not None and positive.is_switch:
        return positive, True
    if not known:
        raise InvalidRequestError(f"unknown flag --{name}: this recipe takes no parameters; {_OTHERS}", field=name)
    near = difflib.get_close_matches(name, known, 1)
    meant = f"did you mean --{near[0]}?" if near else "`-- --help` lists the flags of this recipe"
    raise InvalidRequestError(f"unknown flag --{name}; {meant} {_OTHERS}", field=name)


def _store(values: dict[str, Any], flag: Flag, value: object) -> None:
    for parent in flag.path[:-1]:
        values = values.setdefault(parent, {})
    last = flag.path[-1]
    if flag.is_list:
        values.setdefault(last, []).append(value)
    elif last in values:
        raise InvalidRequestError(f"--{flag.name} is given twice", field=flag.name)
    else:
        values[last] = value


def _convert(flag: Flag, text: str) -> object:
    if flag.choices:
        found = [choice for choice in flag.choices if str(choice) == text]
        if found:
            return found[0]
        listed = ", ".join(str(choice) for choice in flag.choices)
        raise InvalidRequestError(f"--{flag.name} wants one of {listed}, got {text!r}", field=flag.name)
    if flag.is_nullable and text.lower() in ("none", "null"):
        return None
    for schema in flag.schemas:
        value = _as(schema.get("type"), text)
        if value is not _MISSING:
            return value
    raise InvalidRequestError(f"cannot read {text!r}: {flag.usage}", field=flag.name)


def _as(kind: str | None, text: str) -> object:
    """The text as a JSON type, `_MISSING` if it is none; a schema that names no type takes JSON or else the text."""
    if kind == "string":
        return text
    if kind == "boolean":
        return {"true": True, "false": False}.get(text.lower(), _MISSING)
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
        return json.loads(text)
    except ValueError:
        return text if kind is None else _MISSING


# ---------------------------------------------------------------------------------------------------------- for help


def _shown(default: object) -> str:
    return "" if default is _MISSING else f"[{'none' if default is None else json.dumps(default)}]"


def _example(flags: Sequence[Flag]) -> str:
    """The flags that must be given; the first one when none must."""
    needed = [flag for flag in flags if flag.required] or [flag for flag in flags if not flag.is_switch][:1]
    return " ".join(f"--{flag.name} ..." for flag in needed) or f"--{flags[0].name}"
