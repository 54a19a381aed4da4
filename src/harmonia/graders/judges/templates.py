"""The part of Handlebars that templates of judges use.

`{{name}}` and `{{{name}}}` (the same here: a prompt is no HTML), `a.b`, `../name`, `this`, `@index`, `list.length`;
blocks `{{#if}}`, `{{#unless}}` and `{{#each}}` with `{{else}}`; comments. A block's tag alone on a line takes the line
with it. Names that are not there are errors, since a misspelt one would leave a hole in the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from harmonia.errors import InvalidRequestError

MAX_CHARACTERS = 1 << 20
"""Of a template, and of what becomes of one."""
_MAX_DEPTH = 16
_ALONE = re.compile(r"^[ \t]*(\{\{(?:[#/!][^{}]*|\s*else\s*)\}\})[ \t]*(?:\r?\n|\Z)", re.MULTILINE)
_TAG = re.compile(r"\{\{\{\s*([^{}]*?)\s*\}\}\}|\{\{\s*([^{}]*?)\s*\}\}")
_PATH = re.compile(r"(?:\.\./)*(?:@?\w+)(?:\.\w+)*")
_BLOCKS = ("if", "unless", "each")


class _Value(NamedTuple):
    path: str


class _Block(NamedTuple):
    kind: str
    path: str
    inner: list[Any]
    otherwise: list[Any]


_Node = str | _Value | _Block


class Template:
    """A template that was read; InvalidRequestError says what is wrong with it."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise InvalidRequestError(f"a template has at most {MAX_CHARACTERS} characters, got {len(text)}")
        self._nodes = _read(_ALONE.sub(r"\1", text))

    def render(self, values: Mapping[str, Any]) -> str:
        """The text with values in their places; InvalidRequestError names one that is not there."""
        parts: list[str] = []
        size = 0
        for part in _render(self._nodes, [values]):
            size += len(part)
            if size > MAX_CHARACTERS:
                raise InvalidRequestError(f"the template becomes longer than {MAX_CHARACTERS} characters")
            parts.append(part)
        return "".join(parts)


def _read(text: str) -> list[_Node]:
    nodes: list[_Node] = []
    open_blocks: list[_Block] = []
    target = nodes
    end = 0
    for tag in _TAG.finditer(text):
        target.append(text[end : tag.start()])
        end = tag.end()
        said = tag.group(1) if tag.group(1) is not None else tag.group(2)
        if said.startswith("!"):
            continue
        if said.startswith("#"):
            block = _opened(said)
            target.append(block)
            open_blocks.append(block)
            if len(open_blocks) > _MAX_DEPTH:
                raise InvalidRequestError(f"blocks of a template stand at most {_MAX_DEPTH} deep in each other")
            target = block.inner
        elif said == "else" and open_blocks:
            target = open_blocks[-1].otherwise
        elif said.startswith("/"):
            target = _closed(said, open_blocks, nodes)
        else:
            target.append(_Value(_path(said)))
    if open_blocks:
        raise InvalidRequestError(f"the template opens {{{{#{open_blocks[-1].kind}}}}} and does not close it")
    target.append(text[end:])
    return nodes


def _opened(said: str) -> _Block:
    kind, _, path = said[1:].strip().partition(" ")
    if kind not in _BLOCKS:
        raise InvalidRequestError(f"the template has {{{{{said}}}}}; blocks are {', '.join(_BLOCKS)}")
    return _Block(kind, _path(path.strip()), [], [])


def _closed(said: str, open_blocks: list[_Block], nodes: list[_Node]) -> list[Any]:
    """Where what follows the block belongs."""
    kind = said[1:].strip()
    if not open_blocks or open_blocks[-1].kind != kind:
        raise InvalidRequestError(f"the template closes {{{{/{kind}}}}}, which is not open there")
    open_blocks.pop()
    if not open_blocks:
        return nodes
    above = open_blocks[-1]
    return above.otherwise if above.otherwise else above.inner


def _path(said: str) -> str:
    if not _PATH.fullmatch(said):
        raise InvalidRequestError(f"the template has {{{{{said}}}}}; write the name of a value between the braces")
    return said


def _render(nodes: Sequence[_Node], scopes: list[Mapping[str, Any]]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Value):
            found = _find(node.path, scopes)
            yield "" if found is None else str(found)
        else:
            yield from _render_block(node, scopes)


def _render_block(block: _Block, scopes: list[Mapping[str, Any]]) -> Iterator[str]:
    found = _find(block.path, scopes)
    if block.kind != "each":
        is_met = bool(found) is (block.kind == "if")
        yield from _render(block.inner if is_met else block.otherwise, scopes)
        return
    if not isinstance(found, list | tuple):
        raise InvalidRequestError(f"the template says {{{{#each {block.path}}}}}, which is no list")
    if not found:
        yield from _render(block.otherwise, scopes)
    for index, item in enumerate(found):
        own = item if isinstance(item, Mapping) else {}
        place = {"this": item, "@index": index, "@first": index == 0, "@last": index == len(found) - 1}
        yield from _render(block.inner, [*scopes, {**own, **place}])


def _find(path: str, scopes: list[Mapping[str, Any]]) -> Any:
    above = path.count("../")
    first, *others = path[3 * above :].split(".")
    if above >= len(scopes):
        raise InvalidRequestError(f"the template says {path!r}, and nothing is that far up")
    found: Any = scopes[len(scopes) - 1 - above]
    for name in (first, *others):
        if isinstance(found, list | tuple) and name == "length":
            found = len(found)
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            raise InvalidRequestError(f"the template says {path!r}, and there is no {name!r}")
    return found
