"""Conversations in text."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, Self, TypeVar, final

import msgspec

from harmonia.errors import InvalidRequestError
from harmonia.protocol.threads import Fragment, StructuredOutput, Text, ThreadData, ThreadTurn, ToolResponse
from harmonia.threads import fragments, jsonform
from harmonia.threads.thread import Thread

T = TypeVar("T")


class StringTurn(NamedTuple):
    """A role and what it visibly said."""

    role: str
    content: str


class Structured(Protocol):
    """What `StringThread.structured` needs of a value: pydantic's models have it."""

    def model_dump_json(self) -> str:
        """The value as JSON text."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """The JSON schema of its type."""


@final
class StringThread(Thread[ThreadData]):
    """A conversation in text.

    The constructor takes (role, text) tuples. The last turn weighs 1, whatever its role, the others nothing. TypeError
    for anything but tuples of strings, ValueError for tuples that are no pairs.
    """

    __slots__ = ()

    def __new__(cls, turns: Sequence[tuple[str, str]] | None = None, metadata: Any = None) -> Self:
        pairs = [] if turns is None else _pairs(turns, _text)
        return cls._make(ThreadData(turns=_last_weighs(pairs)), metadata)

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("type 'StringThread' is not an acceptable base type")

    # ------------------------------------------------------------------------------------------ other ways to make one

    @classmethod
    async def from_fragments(
        cls, raw_turns: Sequence[tuple[str, Sequence[dict[str, str]]]], metadata: Any = None
    ) -> Self:
        """As the constructor, with lists of fragments (see `fragments`) instead of texts."""
        pairs = _pairs(raw_turns, _fragment_list)
        return cls._make(ThreadData(turns=_last_weighs(pairs)), metadata)

    @classmethod
    async def from_dataset(cls, raw_turns: Sequence[Sequence[Any]], metadata: Any) -> Self:
        """A row of a data set: pairs of a role and a text or a list of fragments; no turn weighs anything.

        InvalidRequestError ("Invalid dataset format: ...") says what is wrong with the row.
        """
        try:
            if not isinstance(raw_turns, list | tuple):
                raise TypeError(f"turns must be a list, not {type(raw_turns).__name__}")
            pairs = [_dataset_turn(turn) for turn in raw_turns]
        except (InvalidRequestError, TypeError, ValueError) as error:
            raise InvalidRequestError(f"Invalid dataset format: {error}") from error
        turns = tuple(ThreadTurn(role=role, content=content, weight=0.0) for role, content in pairs)
        return cls._make(ThreadData(turns=turns), metadata)

    @classmethod
    def from_json(cls, s: str) -> Self:
        """The thread that `to_json` wrote, without its metadata; InvalidRequestError ("JSON error: ...") otherwise."""
        return cls._make(jsonform.from_json(fragments.string(s, "JSON")), None)

    def to_json(self) -> str:
        """Turns, weights and uuid as JSON text; metadata is left out."""
        return jsonform.to_json(self._data)

    # ------------------------------------------------------------------------------------------ one more turn

    def system(self, content: str) -> Self:
        """Append a system turn of weight 1."""
        return self._append("system", _text(content), 1.0)

    def user(self, content: str) -> Self:
        """Append a user turn of weight 0."""
        return self._append("user", _text(content), 0.0)

    def assistant(self, content: str) -> Self:
        """Append an assistant turn of weight 1."""
        return self._append("assistant", _text(content), 1.0)

    def tool(self, content: str, call_id: str | None = None) -> Self:
        """Append a tool's response, of weight 0."""
        answered = None if call_id is None else fragments.string(call_id, "call_id")
        response = ToolResponse(content=fragments.string(content, "content"), call_id=answered)
        return self._append("tool", (response,), 0.0)

    def structured(self, model_instance: Structured) -> Self:
        """Append a pydantic object as an assistant turn of weight 1."""
        text = fragments.string(model_instance.model_dump_json(), "model_dump_json()")
        schema = json.dumps(type(model_instance).model_json_schema())
        return self._append("assistant", (StructuredOutput(raw_text=text, parsed_json=text, schema=schema),), 1.0)

    def _append(self, role: str, content: tuple[Fragment, ...], weight: float) -> Self:
        turns = (*self._data.turns, ThreadTurn(role=role, content=content, weight=weight))
        return self._make(msgspec.structs.replace(self._data, turns=turns), self._metadata)

    # ------------------------------------------------------------------------------------------ what was said

    def get_turns(self) -> list[StringTurn]:
        """Roles with their visible text: texts and structured output without separator."""
        return [StringTurn(turn.role, "".join(fragments.visible_parts(turn.content))) for turn in self._data.turns]

    def messages(self) -> list[tuple[str, str]]:
        """`get_turns` as plain tuples, without a final assistant turn."""
        turns = [(turn.role, turn.content) for turn in self.get_turns()]
        return turns[:-1] if self._ends_with_assistant() else turns

    def completion(self) -> str | None:
        """The visible parts of a final assistant turn, with a space between them; None if another role spoke last."""
        return " ".join(fragments.visible_parts(self._last().content)) if self._ends_with_assistant() else None

    def last_content(self) -> str:
        """The JSON of the last turn's structured output, or else its texts."""
        return fragments.answer(self._last().content)

    def get_fragments(self) -> list[tuple[str, list[dict[str, str]]]]:
        """Roles with everything that they said, as dicts (see `fragments`)."""
        return [(turn.role, [fragments.to_dict(f) for f in turn.content]) for turn in self._data.turns]

    def last_turn_fragments(self) -> list[dict[str, str]]:
        """Everything that the last turn says."""
        return [fragments.to_dict(fragment) for fragment in self._last().content]

    def uuid(self) -> str | None:
        """The id that came with the JSON text, if any."""
        return self._data.uuid

    def _ends_with_assistant(self) -> bool:
        return bool(self._data.turns) and self._data.turns[-1].role == "assistant"

    def _last(self) -> ThreadTurn:
        if not self._data.turns:
            raise InvalidRequestError("Empty thread error")
        return self._data.turns[-1]

    def __repr__(self) -> str:
        turns = [tuple(turn) for turn in self.get_turns()]
        return f"StringThread({turns}, metadata={self._metadata!r}, weights={self.get_turn_weights()})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


# ---------------------------------------------------------------------------------------------- reading arguments


def _pairs(turns: object, read: Callable[[object], T]) -> list[tuple[str, T]]:
    """(role, content) tuples in a sequence, their contents read by `read`."""
    if isinstance(turns, str) or not isinstance(turns, Sequence):
        raise TypeError(f"turns must be a list of (role, content) tuples, not {type(turns).__name__}")
    return [_pair(turn, read) for turn in turns]


def _pair(turn: object, read: Callable[[object], T]) -> tuple[str, T]:
    if not isinstance(turn, tuple):
        raise TypeError(f"a turn must be a (role, content) tuple, not {type(turn).__name__}")
    role, content = _two(turn)
    return fragments.string(role, "role"), read(content)


def _two(turn: Sequence[object]) -> Sequence[object]:
    if len(turn) != 2:
        raise ValueError(f"a turn must be a pair of role and content, this one has {len(turn)} items")
    return turn


def _text(content: object) -> tuple[Fragment, ...]:
    return (Text(text=fragments.string(content, "content")),)


def _fragment_list(content: object) -> tuple[Fragment, ...]:
    if isinstance(content, str) or not isinstance(content, Sequence):
        raise TypeError(f"content must be a list of fragments, not {type(content).__name__}")
    return tuple(fragments.from_dict(raw) for raw in content)


def _dataset_turn(turn: object) -> tuple[str, tuple[Fragment, ...]]:
    if not isinstance(turn, list | tuple):
        raise TypeError(f"a turn must be a pair of role and content, not {type(turn).__name__}")
    role, content = _two(turn)
    if isinstance(content, list | tuple):
        return fragments.string(role, "role"), tuple(fragments.from_dataset(raw) for raw in content)
    return fragments.string(role, "role"), _text(content)


def _last_weighs(pairs: Sequence[tuple[str, tuple[Fragment, ...]]]) -> tuple[ThreadTurn, ...]:
    last = len(pairs) - 1
    return tuple(
        ThreadTurn(role=role, content=content, weight=float(index == last))
        for index, (role, content) in enumerate(pairs)
    )
