"""Numbers and conversations on their way to the wire and back."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import SupportsFloat, SupportsIndex

from harmonia.errors import InvalidRequestError
from harmonia.protocol.threads import ThreadData, ThreadTurn, TokenThreadData
from harmonia.threads import StringThread, TokenizedThread

Real = SupportsFloat | SupportsIndex
"""Python's and NumPy's numbers."""
AnyThread = StringThread | TokenizedThread


def floats(values: Iterable[Real]) -> tuple[float, ...]:
    """The numbers as Python floats; TypeError for what is no number."""
    return tuple(map(float, values))


def token_ids(tokens: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """The tokens as Python ints; TypeError for what is no whole number."""
    return tuple(token.__index__() for token in tokens)


def from_float32(data: bytes) -> list[float]:
    """Little-endian float32 as Python floats."""
    values = array("f", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def wire(thread: AnyThread) -> ThreadData | TokenThreadData:
    """What travels of a thread; TypeError for anything else."""
    if not isinstance(thread, StringThread | TokenizedThread):
        raise TypeError(f"expected a StringThread or a TokenizedThread, not {type(thread).__name__}")
    return thread.to_data()


def with_answer(thread: AnyThread, answered: TokenThreadData) -> StringThread:
    """A conversation and the turn that was generated for it, in text; weights and metadata as they were."""
    data = thread.to_data()
    if isinstance(data, TokenThreadData):
        data = ThreadData(turns=tuple(_text_turn(data, index) for index in range(len(data.turns))))
    turns = (*data.turns, _text_turn(answered, -1))
    return StringThread.from_data(ThreadData(turns=turns, uuid=data.uuid), thread.metadata)


def _text_turn(data: TokenThreadData, index: int) -> ThreadTurn:
    turn = data.turns[index]
    return ThreadTurn(role=turn.role, content=turn.content, weight=turn.weight, flavor=turn.flavor)


def spread_over_tokens(text: str, char_rewards: Sequence[Real], prefixes: Sequence[str]) -> list[float]:
    """One reward per token: the sum over the characters that the token completes, so that the total stays the same.

    prefixes: for each token the text of all tokens up to it. A character made of several tokens counts for its last.
    """
    if len(char_rewards) != len(text):
        raise InvalidRequestError(
            f"char_rewards has {len(char_rewards)} entries and the text {len(text)} characters; give one per character"
        )
    rewards, begin = [], 0
    for number, prefix in enumerate(prefixes, 1):
        is_last = number == len(prefixes)
        end = len(text) if is_last else max(begin, _agreement(text, prefix))
        rewards.append(sum(floats(char_rewards[begin:end])))
        begin = end
    return rewards


def _agreement(text: str, prefix: str) -> int:
    """How many characters of the text the prefix spells; a half character at its end reads as another one."""
    longest = min(len(text), len(prefix))
    return next((end for end in range(longest, 0, -1) if text.startswith(prefix[:end])), 0)
