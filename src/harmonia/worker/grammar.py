"""Grammars that answers must follow: compiled by llguidance in a thread, then one mask of allowed tokens per token."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Protocol

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from harmonia.errors import InvalidRequestError
from harmonia.protocol.messages import Constraint
from harmonia.worker.detokenize import TokenTable

MAX_DEPTH = 100
_MAX_KEPT = 64
_FIELD = "response_format"

# One line break with its indentation, or one space: left free, small models write white space without end.
_WHITESPACE = r"[ ]?|\n[ ]{0,16}"
_LIMITS = LLParserLimits(verbose_errors=False)
_nesting = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}()]', re.DOTALL)


class GrammarTokenizer(Protocol):
    """What grammars need of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that no grammar may use as text."""

    @property
    def eos_ids(self) -> Sequence[int]:
        """Tokens that end an answer."""

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Token ids of a text."""


class Grammar:
    """The state of one answer within its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Nothing but the end may follow."""
        return self._matcher.is_stopped()

    def consume(self, token_id: int) -> None:
        """Go on by a token."""
        if not self._matcher.consume_token(token_id):
            raise _refusal(self._matcher.get_error())

    def copy(self) -> Grammar:
        """The same state, from which to go elsewhere."""
        return Grammar(self._matcher.deep_copy())

    def forced(self) -> tuple[bytes, list[int]]:
        """Text that must come next, and the tokens of it that whatever follows does not change."""
        return self._matcher.compute_ff_bytes(), self._matcher.compute_ff_tokens()

    def mask(self) -> bytes:
        """One bit per token: allowed next. Releases the interpreter's lock."""
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise _refusal(self._matcher.get_error())
        return mask


class Compiled:
    """A grammar at its beginning, from which any number of answers start."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.first_mask = Grammar(matcher).mask()

    def start(self) -> Grammar:
        """The state of a new answer."""
        return Grammar(self._matcher.deep_copy())


class GrammarCompiler:
    """Compiles constraints, never on the event loop, and keeps the last ones."""

    def __init__(self, tokenizer: GrammarTokenizer, table: TokenTable, executor: Executor, max_bytes: int) -> None:
        self._source = tokenizer
        self._table = table
        self._executor = executor
        self._max_bytes = max_bytes
        self._tokenizer: asyncio.Future[LLTokenizer] | None = None
        self._kept: OrderedDict[tuple[str, str], Compiled] = OrderedDict()

    async def compile(self, constraint: Constraint) -> Compiled:
        """The grammar. Raises `InvalidRequestError` with what llguidance says."""
        key = (constraint.kind, constraint.source)
        if key not in self._kept:
            self._check(constraint)
            loop = asyncio.get_running_loop()
            if self._tokenizer is None:
                self._tokenizer = loop.run_in_executor(self._executor, _build_tokenizer, self._source, self._table)
            tokenizer = await asyncio.shield(self._tokenizer)
            self._kept[key] = await loop.run_in_executor(self._executor, _compile, constraint, tokenizer)
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _check(self, constraint: Constraint) -> None:
        size = len(constraint.source.encode())
        if size > self._max_bytes:
            message = f"{_FIELD} has {size} bytes, and at most {self._max_bytes} are allowed (max_grammar_bytes)"
            raise InvalidRequestError(message, field=_FIELD)
        depth = _depth(constraint.source)
        if depth > MAX_DEPTH:
            message = f"{_FIELD} is nested {depth} levels deep, and at most {MAX_DEPTH} are allowed"
            raise InvalidRequestError(message, field=_FIELD)


class _Callable:
    """A tokenizer in the shape that llguidance takes."""

    def __init__(self, tokenizer: GrammarTokenizer, table: TokenTable) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids, default=0)
        self.bos_token_id = None
        self.tokens = [table.raw(token_id) for token_id in range(len(table))]
        self.special_token_ids = sorted(tokenizer.special_ids)

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):  # llguidance tries bytes first and takes an error for a no
            raise TypeError("text only")
        return self._tokenizer.encode(text, add_special=False)


def _build_tokenizer(tokenizer: GrammarTokenizer, table: TokenTable) -> LLTokenizer:
    wrapper = TokenizerWrapper(_Callable(tokenizer, table))
    return LLTokenizer(wrapper, n_vocab=len(table), eos_token=list(tokenizer.eos_ids) or None)


def _compile(constraint: Constraint, tokenizer: LLTokenizer) -> Compiled:
    matcher = LLMatcher(tokenizer, _grammar_text(constraint), log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise _refusal(matcher.get_error())
    return Compiled(matcher)


def _grammar_text(constraint: Constraint) -> str:
    match constraint.kind:
        case "json_object":
            return _json_grammar('{"type": "object"}')
        case "json_schema":
            return _json_grammar(constraint.source)
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.source)
        case "lark":
            return LLMatcher.grammar_from_lark(constraint.source)
    kinds = "json_object, json_schema, regex or lark"
    raise InvalidRequestError(f"{_FIELD} must be of kind {kinds}, got {constraint.kind!r}", field=_FIELD)


def _json_grammar(schema: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITESPACE})
    except (ValueError, RecursionError) as error:
        raise _refusal(str(error)) from error


def _refusal(message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{_FIELD}: {message.strip()[:1000]}", field=_FIELD)


def _depth(source: str) -> int:
    """How deep brackets nest outside strings. Parsers that recurse must never see more than they can take."""
    depth = deepest = 0
    for found in _nesting.finditer(source):
        if found[0] in ("[", "{", "("):
            depth += 1
            deepest = max(deepest, depth)
        elif found[0][0] != '"':
            depth = max(0, depth - 1)
    return deepest
