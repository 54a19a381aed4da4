"""Schemas of metadata: the verdicts of the reference implementation, and what is wrong in words."""

from __future__ import annotations

from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from harmonia.errors import InvalidRequestError
from harmonia.server.services.graders.json_schema import SchemaChecker


class Source(BaseModel):
    url: str = Field(pattern=r"^https?://", max_length=40)
    parent: Source | None = None


class Wanted(BaseModel, extra="forbid"):
    """What a server for rewards may want to know: what pydantic makes a schema of."""

    answer: str
    level: int = Field(default=1, ge=0, lt=10)
    kind: Literal["easy", "hard", 1] = "easy"
    weights: list[float] = Field(default=[], max_length=3)
    pair: tuple[int, str] | None = None
    sources: dict[str, Source] = {}


LIMITS = '{"exclusiveMaximum": 10, "minimum": 0}'
RIGHT: dict[str, Any] = {"answer": "42"}
VALUES: list[Any] = [
    RIGHT,
    {},
    [],
    None,
    "text",
    {"answer": None},
    {"answer": "42", "surplus": 1},
    *({**RIGHT, "level": level} for level in (0, 9, 10, -1, 1.0, 1.5, True, "1", 10**30)),
    *({**RIGHT, "kind": kind} for kind in ("hard", "harder", 1, True, None)),
    *({**RIGHT, "weights": weights} for weights in ([1, 2.5], [1, 2, 3, 4], ["1"], [False], {})),
    *({**RIGHT, "pair": pair} for pair in (None, [1, "a"], [1], [1, "a", 2], ["a", 1])),
    {**RIGHT, "sources": {"a": {"url": "http://here"}}},
    {**RIGHT, "sources": {"a": {"url": "ftp://here"}}},
    {**RIGHT, "sources": {"a": {"url": "http://here", "parent": {"url": "http://there", "parent": None}}}},
    {**RIGHT, "sources": {"a": {"url": "http://here", "parent": {"url": "x" * 50}}}},
]
SCHEMAS: list[dict[str, Any]] = [
    Wanted.model_json_schema(),
    {},
    {"type": ["object", "null"], "minProperties": 1, "maxProperties": 1},
    {"patternProperties": {"^l": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
    {"oneOf": [{"type": "object"}, {"required": ["answer"]}]},
    {"not": {"type": "array"}, "allOf": [{"minLength": 5}, {"maxProperties": 1}]},
    {"properties": {"weights": {"uniqueItems": True, "minItems": 1}, "level": {"multipleOf": 0.5}}},
    {"properties": {"answer": False, "kind": {"const": 1}}},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_the_verdict_is_that_of_the_reference(schema: dict[str, Any]) -> None:
    checker, reference = SchemaChecker(schema), jsonschema.Draft202012Validator(schema)
    for value in VALUES:
        assert (checker.problem(value) is None) == reference.is_valid(value), value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "the metadata: 'answer' is missing"),
        ({"answer": 42}, "answer: 42 is no string"),
        ({**RIGHT, "level": 10}, f"level: 10 is beyond the limits {LIMITS}"),
        ({**RIGHT, "level": 10**400}, f"level: 1{'0' * 76}... is beyond the limits {LIMITS}"),
        ({**RIGHT, "kind": "odd"}, 'kind: "odd" is not "easy" or "hard" or 1'),
        ({**RIGHT, "weights": [0.5, "x"]}, 'weights[1]: "x" is no number'),
        ({**RIGHT, "sources": {"a": {}}}, "sources.a: 'url' is missing"),
        ({**RIGHT, "surplus": 1}, "the metadata: there is no 'surplus' in the schema"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(value: object, says: str) -> None:
    assert SchemaChecker(Wanted.model_json_schema()).problem(value) == says


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"if": {}}, "keyword 'if'"),
        ({"$ref": "https://elsewhere/schema"}, "only what is inside"),
        ({"$ref": "#/$defs/none"}, "none that can be read"),
        ({"$ref": "#"}, "without an end"),
        ({"type": "text"}, "none that can be read"),
        ({"type": 3}, "none that can be read"),
        ({"properties": {"answer": {"pattern": "(?=a)"}}}, "pattern that cannot be read"),
        ({"properties": {"level": {"multipleOf": 0}}}, "none that can be read"),
        ({"properties": 5}, "none that can be read"),
    ],
)
def test_a_schema_that_cannot_be_read_is_refused(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        SchemaChecker(schema).problem({**RIGHT, "level": 1})


def test_a_schema_that_asks_for_ever_is_given_up() -> None:
    doubled = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**doubled, "a40": False}}
    with pytest.raises(InvalidRequestError, match="more than 100000 checks"):
        SchemaChecker(schema).problem(RIGHT)
    slow = {"properties": {"answer": {"pattern": "^(a+)+$"}}}
    assert SchemaChecker(slow).problem({"answer": "a" * 5000 + "b"}) is not None
