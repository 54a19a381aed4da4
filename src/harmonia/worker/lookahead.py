"""What may come next in an answer under a grammar: masks, and tokens to propose with them.

A proposal is what the grammar forces; else what followed the last tokens when they stood in the conversation before;
else the brackets, quotes, commas and white space that came at such a place before. Whatever it is, the model draws its
own token there, under the grammar's mask: a wrong proposal costs time and changes nothing.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harmonia.engine.ngram import look_up
from harmonia.errors import HarmoniaError
from harmonia.worker.detokenize import TokenTable
from harmonia.worker.grammar import Grammar

_GLUE = b' \n\t\r{}[]",:'
_NUM_KEPT = 4
"""Tokens that are remembered for one place, the last ones seen."""


class Habits:
    """Which brackets, quotes, commas and white space a tokenizer's models write after which.

    Shared by all answers, so it keeps nothing else of them.
    """

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._after: dict[int | bytes, tuple[int, ...]] = {}
        """By the token before, or the first byte where that is a value."""

    def note(self, before: int, token_id: int) -> None:
        """A token came after another one."""
        if not self._is_glue(token_id):
            return
        place = before if self._is_glue(before) else self._table.raw(token_id)[:1]
        known = self._after.get(place, ())
        self._after[place] = (token_id, *(other for other in known if other != token_id))[:_NUM_KEPT]

    def recall(self, before: int, forced: bytes) -> tuple[int, ...]:
        """What came there, the last one first; forced: text that must come there, as far as it is known."""
        return self._after.get(before if self._is_glue(before) else forced[:1], ())

    def _is_glue(self, token_id: int) -> bool:
        text = self._table.visible(token_id)
        return bool(text) and not text.strip(_GLUE)


class Ahead(NamedTuple):
    """What the engine gets to know before it goes on with an answer."""

    masks: bytes
    """For the next token, and behind it for the one after each proposal."""
    proposals: tuple[int, ...]


class Guide:
    """An answer under a grammar: where it stands, and what may come."""

    def __init__(self, grammar: Grammar, prompt_ids: Sequence[int], habits: Habits) -> None:
        self._grammar = grammar
        self._tokens = array("i", prompt_ids)
        self._habits = habits

    @property
    def complete(self) -> bool:
        """Nothing but the end may follow."""
        return self._grammar.complete

    def consume(self, token_id: int) -> None:
        """Go on by a token. Raises `InvalidRequestError` if the grammar does not allow it."""
        self._grammar.consume(token_id)
        self._habits.note(self._tokens[-1], token_id)
        self._tokens.append(token_id)

    def ahead(self, num_wanted: int, until_s: float) -> Ahead:
        """Masks, with as many proposals as can be found until this `time.monotonic()`.

        A token that ends the answer is not proposed: nothing would come of what follows it.
        """
        masks, start = [self._grammar.mask()], len(self._tokens)
        if not num_wanted:
            return Ahead(masks[0], ())
        place, tokens = self._grammar.copy(), self._tokens[:]
        planned: list[int] = []
        while len(masks) <= num_wanted and time.monotonic() < until_s:
            planned = self._plan(place, tokens, masks[-1], planned, num_wanted)
            if not planned:
                break
            try:
                place.consume(planned[0])
                if place.complete:
                    break
                masks.append(place.mask())
            except HarmoniaError:  # a limit of the grammar's, on a way that the answer need not take
                break
            tokens.append(planned.pop(0))
        return Ahead(b"".join(masks), tuple(tokens[start:]))

    def _plan(self, place: Grammar, tokens: array[int], mask: bytes, planned: list[int], num_wanted: int) -> list[int]:
        """Tokens of which the first is allowed: `planned` as long as that is so; empty if none come to mind."""
        if planned and _allows(mask, planned[0]):
            return planned
        text, forced = place.forced()
        if forced and _allows(mask, forced[0]):
            return forced
        found: list[int] = look_up(np.array(tokens), num_wanted).tolist()
        if found and _allows(mask, found[0]):
            return found
        return [token for token in self._habits.recall(tokens[-1], text) if _allows(mask, token)][:1]


def _allows(mask: bytes, token_id: int) -> bool:
    return token_id >> 3 < len(mask) and bool(mask[token_id >> 3] >> (token_id & 7) & 1)
