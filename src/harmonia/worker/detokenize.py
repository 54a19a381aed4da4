"""Tokens to text: one table of bytes per model, one UTF-8 decoder per answer."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Protocol

_NOTHING_SHOWN: Mapping[int, bytes] = {}


class TokenBytes(Protocol):
    """The part of a tokenizer that detokenizing needs."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are markup, never text."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; the name, for a special token."""


class TokenTable:
    """Bytes and text of every token, looked up once each."""

    def __init__(self, tokenizer: TokenBytes, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._raw: list[bytes | None] = [None] * vocab_size
        self._text: list[str | None] = [None] * vocab_size
        self._special = tokenizer.special_ids

    def __len__(self) -> int:
        return len(self._raw)

    def raw(self, token_id: int) -> bytes:
        """The token's own bytes; the name, for a special token; nothing for an id that the tokenizer lacks."""
        data = self._raw[token_id]
        if data is None:
            try:
                data = self._tokenizer.token_bytes(token_id)
            except (IndexError, KeyError, ValueError):  # models pad their vocabulary beyond the tokenizer's
                data = b""
            self._raw[token_id] = data
        return data

    def visible(self, token_id: int) -> bytes:
        """What the token adds to an answer: special tokens add nothing."""
        return b"" if token_id in self._special else self.raw(token_id)

    def text(self, token_id: int) -> str:
        """The token by itself, with U+FFFD in place of parts of characters."""
        text = self._text[token_id]
        if text is None:
            text = self._text[token_id] = self.raw(token_id).decode("utf-8", "replace")
        return text


class Detokenizer:
    """Turns the tokens of one answer into text as they come, whole characters only."""

    def __init__(self, table: TokenTable, *, strip_space: bool = False, shown: Mapping[int, bytes] | None = None):
        """
        strip_space: drop one space at the very beginning, which SentencePiece models put before the first word.
        shown: special tokens that count as text here, because they mark tool calls.
        """
        self._table = table
        self._strip_space = strip_space
        self._shown = shown or _NOTHING_SHOWN
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        data = self._shown[token_id] if token_id in self._shown else self._table.visible(token_id)
        return self._strip(self._decode(data)) if data else ""

    def flush(self) -> str:
        """What is left at the end: U+FFFD if the answer stopped inside a character."""
        return self._strip(self._decode(b"", True))

    def _strip(self, text: str) -> str:
        if self._strip_space and text:
            self._strip_space = False
            return text.removeprefix(" ")
        return text
