"""JSON schemas of pydantic models: strict for a grammar, in words for a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from harmonia.errors import InvalidRequestError

Schema = dict[str, Any]

_OF_ONE = ("items", "additionalProperties", "not", "contains", "if", "then", "else")
_OF_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_BY_NAME = ("properties", "$defs", "patternProperties")
_WORDS = {"integer": "integer", "number": "number", "string": "string", "boolean": "true | false", "null": "null"}


def get_pydantic_schema(base_model: type[BaseModel]) -> str:
    """The JSON schema that `constrained_decoding` takes: objects hold the declared keys and no others."""
    schema = _closed(_schema(base_model))
    for field in schema.get("properties", {}).values():
        field.pop("title", None)
    return json.dumps(schema)


def get_simple_pydantic_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The type of each field in words, as `{"score": '"PASS" | "FAIL"'}`; a nested model is a dictionary."""
    schema = _schema(model)
    return _Words(schema.get("$defs", {}), with_descriptions=False).fields(schema)


def render_schema(pydantic_model: type[BaseModel], with_field_descriptions: bool = True) -> str:
    """The form of an answer as a prompt shows it: JSON with types in place of values, descriptions beside them."""
    schema = _schema(pydantic_model)
    return _Words(schema.get("$defs", {}), with_field_descriptions).of(schema)


def render_pydantic_model(pydantic_model: BaseModel) -> str:
    """An object as a prompt shows it: indented JSON."""
    return pydantic_model.model_dump_json(indent=2)


def _schema(model: type[BaseModel]) -> Schema:
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise InvalidRequestError(f"a response model is a subclass of pydantic.BaseModel, got {model!r}")
    schema = model.model_json_schema()
    root = schema.pop("$ref", "").rpartition("/")[2]  # how pydantic writes a model that contains itself
    return {**schema["$defs"][root], **schema} if root else schema


def _closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` wherever an object leaves it open."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key in _OF_ONE:
        if key in closed:
            closed[key] = _closed(closed[key])
    for key in _OF_MANY:
        if key in closed:
            closed[key] = [_closed(each) for each in closed[key]]
    for key in _BY_NAME:
        if key in closed:
            closed[key] = {name: _closed(each) for name, each in closed[key].items()}
    if closed.get("type") == "object" or "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


class _Words:
    """Schemas in words; `definitions` are what they refer to."""

    def __init__(self, definitions: Mapping[str, Schema], with_descriptions: bool) -> None:
        self._definitions = definitions
        self._with_descriptions = with_descriptions

    def of(self, schema: Schema, indent: str = "", inside: tuple[str, ...] = ()) -> str:
        """A type, or the block of an object. `inside` names the definitions it stands in: one that recurs is named."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return name if name in inside else self.of(self._definitions[name], indent, (*inside, name))
        if "enum" in schema or "const" in schema:
            return " | ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
        for choice in ("anyOf", "oneOf", "allOf"):
            if choice in schema:
                return " | ".join(dict.fromkeys(self.of(each, indent, inside) for each in schema[choice]))
        if schema.get("properties"):
            return self._block(schema, indent, inside)
        return self._plain(schema, indent, inside)

    def fields(self, schema: Schema, inside: tuple[str, ...] = ()) -> dict[str, Any]:
        """The type of each field; of a nested model, its fields."""
        named: dict[str, Any] = {}
        for name, field in schema.get("properties", {}).items():
            target = field.get("$ref", "").rpartition("/")[2]
            nested = self._definitions.get(target, {})
            if "properties" in nested and target not in inside:
                named[name] = self.fields(nested, (*inside, target))
            else:
                named[name] = self.of(field, "", inside)
        return named

    def _block(self, schema: Schema, indent: str, inside: tuple[str, ...]) -> str:
        deeper, required = indent + "  ", schema.get("required", [])
        lines = []
        for number, (name, field) in enumerate(schema["properties"].items(), 1):
            comma = "," if number < len(schema["properties"]) else ""
            notes = [] if name in required else ["optional"]
            if self._with_descriptions and "description" in field:
                notes.append(" ".join(field["description"].split()))
            note = f"  // {': '.join(notes)}" if notes else ""
            lines.append(f"{deeper}{json.dumps(name)}: {self.of(field, deeper, inside)}{comma}{note}")
        return "\n".join(["{", *lines, indent + "}"])

    def _plain(self, schema: Schema, indent: str, inside: tuple[str, ...]) -> str:
        kind = schema.get("type", "anything")
        if kind == "array":
            parts = [self.of(each, indent, inside) for each in schema.get("prefixItems", [])]
            if "items" in schema:
                parts += [self.of(schema["items"], indent, inside), "..."]
            return f"[{', '.join(parts) or '...'}]"
        if kind == "object":
            values = schema.get("additionalProperties")
            return f"{{string: {self.of(values, indent, inside) if isinstance(values, dict) else 'anything'}, ...}}"
        return _WORDS.get(kind, str(kind))
