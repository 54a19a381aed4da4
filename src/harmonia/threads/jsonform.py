"""The JSON text of a thread.

`{"turns": [[{"role", "content": [{"Text": "..."}, {"FunctionCall": {...}}, ...]}, {"flavor", "mult"}], ...], "uuid"}`.
Metadata is not part of it. Unknown keys are ignored, except beside a fragment, which has exactly one.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from harmonia.errors import InvalidRequestError
from harmonia.protocol.threads import (
    Flavor,
    Fragment,
    FunctionCall,
    Reasoning,
    StructuredOutput,
    Text,
    ThreadData,
    ThreadTurn,
    ToolResponse,
)
from harmonia.threads.fragments import image_error
from harmonia.threads.weights import float32, shortest


class _Fragment(msgspec.Struct, frozen=True, rename="pascal", forbid_unknown_fields=True):
    text: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET
    tool_response: ToolResponse | UnsetType = UNSET
    structured_output: StructuredOutput | UnsetType = UNSET
    image: msgspec.Raw | UnsetType = UNSET


class _Turn(msgspec.Struct, frozen=True):
    role: str
    content: tuple[_Fragment, ...]


class _Weight(msgspec.Struct, frozen=True):
    flavor: Flavor
    mult: float


class _Thread(msgspec.Struct, frozen=True):
    turns: tuple[tuple[_Turn, _Weight], ...]
    uuid: str | None = None


_decode = msgspec.json.Decoder(_Thread).decode


def to_json(data: ThreadData) -> str:
    """The JSON text of a thread."""
    turns = [
        (
            {"role": turn.role, "content": [_write(fragment) for fragment in turn.content]},
            {"flavor": turn.flavor, "mult": shortest(turn.weight)},
        )
        for turn in data.turns
    ]
    return msgspec.json.encode({"turns": turns, "uuid": data.uuid}).decode()


def _write(fragment: Fragment) -> dict[str, object]:
    name = type(fragment).__name__
    if isinstance(fragment, Text | Reasoning):
        return {name: fragment.text}
    return {name: {field: getattr(fragment, field) for field in fragment.__struct_fields__}}


def from_json(text: str) -> ThreadData:
    """The thread of a JSON text; InvalidRequestError ("JSON error: ...") says what is wrong with it."""
    try:
        thread = _decode(text)
        return ThreadData(turns=tuple(_turn(*pair) for pair in thread.turns), uuid=thread.uuid)
    except (msgspec.DecodeError, OverflowError, RecursionError, UnicodeError) as error:
        raise InvalidRequestError(f"JSON error: {error}") from error


def _turn(turn: _Turn, weight: _Weight) -> ThreadTurn:
    content = tuple(_read(fragment) for fragment in turn.content)
    return ThreadTurn(role=turn.role, content=content, weight=float32(weight.mult), flavor=weight.flavor)


def _read(raw: _Fragment) -> Fragment:
    given = [value for name in raw.__struct_fields__ if (value := getattr(raw, name)) is not UNSET]
    if len(given) != 1:
        raise msgspec.ValidationError(f"a fragment has exactly one key, this one has {len(given)}")
    if raw.image is not UNSET:
        raise image_error()
    if isinstance(raw.text, str):
        return Text(text=raw.text)
    if isinstance(raw.reasoning, str):
        return Reasoning(text=raw.reasoning)
    fragment: Fragment = given[0]
    return fragment
