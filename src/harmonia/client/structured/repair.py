"""JSON inside the text of a model: where it begins, where it ends, how to close it if it was cut short."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

_TOKEN = re.compile(
    r"""
      (?P<open> [{\[] )
    | (?P<close> [}\]] )
    | (?P<mark> [,:] )
    | (?P<string> "(?:[^"\\]|\\.)*+" )
    | (?P<cut> ".* )                    # a string without an end takes the rest
    | (?P<word> [^\s"{}\[\],:]+ )
    """,
    re.DOTALL | re.VERBOSE,
)
_OPEN = re.compile(r"[{\[]")
_WHOLE_CHARACTERS = re.compile(r'"(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*+', re.DOTALL)
_HALF_A_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_LONGEST_TAIL = 4
"""Tokens that may have to go before the rest can be closed: a comma, a key, a colon, the beginning of a value."""
_MOST_STARTS = 32
"""How many brackets are tried as a beginning: prose full of them must not take for ever."""
_MAX_DEPTH = 100
"""Brackets within brackets, as far as grammars allow them too."""


def json_texts(text: str) -> Iterator[str]:
    """The JSON values that a text may hold: all of it, else whatever begins with a bracket, in order."""
    if (whole := _canonical(text)) is not None:
        yield whole
        return
    position = 0
    for _ in range(_MOST_STARTS):
        opening = _OPEN.search(text, position)
        if opening is None:
            return
        value, end = _value_at(text, opening.start())
        if value is not None:
            yield value
        position = end if value is not None else opening.end()


def _canonical(text: str) -> str | None:
    try:
        return json.dumps(json.loads(text, strict=False))  # not strict: models put bare line ends into strings
    except (ValueError, RecursionError):
        return None


def _value_at(text: str, start: int) -> tuple[str | None, int]:
    """The value that opens at `start`, closed if its end is missing, or None; and where it ends."""
    tokens: list[re.Match[str]] = []
    depth = 0
    for token in _TOKEN.finditer(text, start):
        if token.group().startswith("```"):  # the answer ends here, whatever is still open
            break
        tokens.append(token)
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        if depth > _MAX_DEPTH:
            return None, token.end()
        if depth == 0:
            return _canonical(text[start : token.end()]), token.end()
    return _closed(text, tokens), len(text)


def _closed(text: str, tokens: Sequence[re.Match[str]]) -> str | None:
    """The longest beginning that becomes JSON by closing what is open; None if it would be empty."""
    last = tokens[-1]
    if last.lastgroup == "word" and last.end() == len(text) and last.group() not in ("true", "false", "null"):
        tokens = tokens[:-1]  # a number that may have had more digits
    for count in range(len(tokens), max(len(tokens) - _LONGEST_TAIL, 1) - 1, -1):
        last = tokens[count - 1]
        end = _closed_string(last.group()) if last.lastgroup == "cut" else last.group()
        value = _canonical(text[tokens[0].start() : last.start()] + end + _closers(tokens[:count]))
        if value is not None:
            return value if value not in ("{}", "[]") else None
    return None


def _closers(tokens: Sequence[re.Match[str]]) -> str:
    open_: list[str] = []
    for token in tokens:
        if token.lastgroup == "open":
            open_.append("}" if token.group() == "{" else "]")
        elif token.lastgroup == "close":
            open_.pop()
    return "".join(reversed(open_))


def _closed_string(begun: str) -> str:
    whole = _WHOLE_CHARACTERS.match(begun)
    return _HALF_A_PAIR.sub("", whole.group() if whole else '"') + '"'
