"""How large an operation may be, and which texts it may hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    StringValueNode,
    ValidationRule,
)
from strawberry.extensions import AddValidationRules, MaxTokensLimiter, SchemaExtension
from strawberry.fastapi import GraphQLRouter

from harmonia.server.graphql.context import Context

MAX_TOKENS = 1_000
"""Words and signs of a document; the largest of the published client has 220."""
MAX_DEPTH = 16
"""Fields inside of fields."""
MAX_FIELDS = 400
"""Fields of an operation, those of a fragment counted at each use."""
MAX_ALIASES = 50
"""Fields under another name, by which one operation can call the same resolver many times."""
MAX_REPEATS = 10
"""Times that one field stands in one place, which GraphQL merges."""


class _Size(NamedTuple):
    depth: int = 0
    fields: int = 0
    aliases: int = 0
    repeats: int = 0


class BoundedSize(SchemaExtension):
    """Refuses operations that are cheap to send and dear to answer, before the rules of GraphQL, some of which take
    time with the square of the size. Each fragment is measured once, so that measuring is not dear itself."""

    def on_validate(self) -> Iterator[None]:
        """Raise `GraphQLError` for an operation beyond a limit."""
        document = self.execution_context.graphql_document
        definitions = document.definitions if document is not None else ()
        measure = _Measure({node.name.value: node for node in definitions if isinstance(node, FragmentDefinitionNode)})
        for node in definitions:
            if isinstance(node, OperationDefinitionNode):
                _check(node, measure.size_of(node.selection_set))
        yield


def _check(node: OperationDefinitionNode, size: _Size) -> None:
    counts = (("levels", size.depth, MAX_DEPTH), ("fields", size.fields, MAX_FIELDS))
    for what, count, limit in (*counts, ("aliases", size.aliases, MAX_ALIASES), ("repeats", size.repeats, MAX_REPEATS)):
        if count > limit:
            raise GraphQLError(
                f"the operation has {count} {what}, and {limit} are allowed; split it into several", node
            )


class _Measure:
    def __init__(self, fragments: dict[str, FragmentDefinitionNode]) -> None:
        self._fragments = fragments
        self._sizes: dict[str, _Size] = {}

    def size_of(self, selections: SelectionSetNode | None) -> _Size:
        nodes = selections.selections if selections is not None else ()
        names = Counter((node.alias or node.name).value for node in nodes if isinstance(node, FieldNode))
        depth, fields, aliases, repeats = 0, 0, 0, max(names.values(), default=0)
        for node in nodes:
            inner = self._inner(node)
            if isinstance(node, FieldNode):
                depth, fields, aliases = max(depth, inner.depth + 1), fields + 1, aliases + (node.alias is not None)
            depth, repeats = max(depth, inner.depth), max(repeats, inner.repeats)
            fields, aliases = fields + inner.fields, aliases + inner.aliases
        return _Size(depth, fields, aliases, repeats)

    def _inner(self, node: object) -> _Size:
        if isinstance(node, FieldNode | InlineFragmentNode):
            return self.size_of(node.selection_set)
        assert isinstance(node, FragmentSpreadNode)
        name = node.name.value
        if name not in self._sizes:
            # Counts as nothing while it is measured: GraphQL refuses fragments that hold themselves.
            self._sizes[name] = _Size()
            fragment = self._fragments.get(name)
            self._sizes[name] = self.size_of(None if fragment is None else fragment.selection_set)
        return self._sizes[name]


class _StorableTexts(ValidationRule):
    """Refuses texts in the document that databases cannot hold."""

    def enter_string_value(self, node: StringValueNode, *_: Any) -> None:
        if not is_storable(node.value):
            self.report_error(GraphQLError(_NOT_STORABLE, node))


class StorableVariables(SchemaExtension):
    """Refuses the same among the variables."""

    def on_operation(self) -> Iterator[None]:
        if not _all_storable(self.execution_context.variables):
            raise GraphQLError(_NOT_STORABLE)
        yield


_NOT_STORABLE = "a text holds the character U+0000 or half of a surrogate pair, which no database keeps; take it out"


def is_storable(text: str) -> bool:
    """Whether every database can hold a text."""
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


def _all_storable(value: object) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str) and not is_storable(item):
            return False
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
    return True


def _tokens() -> SchemaExtension:
    return MaxTokensLimiter(MAX_TOKENS)


def _rules() -> SchemaExtension:
    return AddValidationRules([_StorableTexts])


LIMITS: tuple[Callable[[], SchemaExtension], ...] = (_tokens, _rules, BoundedSize, StorableVariables)
"""Extensions, made anew for each operation."""


class LimitedRouter(GraphQLRouter[Context, None]):
    """Takes one JSON object, nested no deeper than it can read."""

    def decode_json(self, data: str | bytes) -> object:
        """A body; `JSONDecodeError`, which becomes a 400, for everything that is wrong with it."""
        try:
            found = json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise json.JSONDecodeError(str(error), "", 0) from error
        if not isinstance(found, dict):
            raise json.JSONDecodeError("the body is no object", "", 0)
        return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number in JSON")
