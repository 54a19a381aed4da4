"""Conversations in tokens, made by a worker's tokenizer or sampled by its engine."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn, Self, final

from harmonia.errors import InvalidRequestError
from harmonia.protocol.threads import ThreadData, ThreadTurn, TokenThreadData, TokenTurn
from harmonia.threads import fragments
from harmonia.threads.strings import StringThread
from harmonia.threads.thread import Thread
from harmonia.threads.weights import token_weights


class TokenizedTurn(NamedTuple):
    """A role and its tokens, the end-of-turn token included if there is one."""

    role: str
    content: list[int]


@final
class TokenizedThread(Thread[TokenThreadData]):
    """A conversation in tokens. Models make them (`tokenize_thread`, `generate_tokens`); callers do not."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Self:
        raise TypeError("cannot create 'TokenizedThread' instances; a model's tokenize_thread or generate_tokens does")

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("type 'TokenizedThread' is not an acceptable base type")

    @classmethod
    def from_data(cls, data: TokenThreadData, metadata: Any = None) -> Self:
        """The thread of wire data. InvalidRequestError for turns that overlap or leave the tokens, or bad weights."""
        end = 0
        for index, turn in enumerate(data.turns):
            if not end <= turn.start <= turn.stop <= len(data.token_ids):
                raise InvalidRequestError(
                    f"turn {index} is tokens [{turn.start}, {turn.stop}); turns must follow each other without overlap "
                    f"within [{end}, {len(data.token_ids)})"
                )
            end = turn.stop
        return super().from_data(data, metadata)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The whole conversation as the model reads it, role headers included."""
        return self._data.token_ids

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight per token of `token_ids`."""
        return token_weights(self._data)

    def get_turns(self) -> list[TokenizedTurn]:
        """Roles with their tokens."""
        return [TokenizedTurn(turn.role, self._tokens(turn)) for turn in self._data.turns]

    def turns(self) -> list[TokenizedTurn]:
        """The same as `get_turns`."""
        return self.get_turns()

    def last_content(self) -> list[int] | None:
        """The tokens of the last turn; None for an empty thread."""
        return self._tokens(self._data.turns[-1]) if self._data.turns else None

    def len_last_turn(self) -> int:
        """The number of tokens of the last turn; 0 for an empty thread."""
        return len(self.last_content() or ())

    def get_fragments(self) -> list[tuple[str, list[dict[str, str]]]]:
        """Roles with what they said in text, as dicts; an answer under a grammar ends with a `parsed_json`."""
        return [(turn.role, [fragments.to_dict(f) for f in turn.content]) for turn in self._data.turns]

    def detokenized(self) -> StringThread:
        """The same conversation in text, with its weights and the same metadata object."""
        turns = tuple(
            ThreadTurn(role=turn.role, content=turn.content, weight=turn.weight, flavor=turn.flavor)
            for turn in self._data.turns
        )
        return StringThread.from_data(ThreadData(turns=turns), self._metadata)

    def _tokens(self, turn: TokenTurn) -> list[int]:
        return list(self._data.token_ids[turn.start : turn.stop])

    def __repr__(self) -> str:
        turns = [tuple(turn) for turn in self.get_turns()]
        return f"TokenizedThread({turns}, metadata={self._metadata!r}, weights={self.get_turn_weights()})"
