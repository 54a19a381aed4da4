"""Conversations as they travel: fragments, turns with weights, and the tokens that a turn became.

A weight says how much a turn counts in a loss; its flavor says how the weight is spread over the tokens of the turn.
"""

from __future__ import annotations

from typing import Literal

from harmonia.protocol.base import Message

Flavor = Literal["PerToken", "Normalized", "LastToken"]
"""Every token gets the weight; every token gets an equal share of it; only the last token gets it."""


# ---------------------------------------------------------------------------------------------- what a turn is made of


class Text(Message, frozen=True, kw_only=True):
    """What everyone sees."""

    text: str


class Reasoning(Message, frozen=True, kw_only=True):
    """What a model thought before it spoke."""

    text: str


class FunctionCall(Message, frozen=True, kw_only=True):
    """A model asks for a tool."""

    call_id: str
    name: str
    arguments: str
    """JSON text."""


class ToolResponse(Message, frozen=True, kw_only=True):
    """What a tool answered."""

    content: str
    call_id: str | None = None


class StructuredOutput(Message, frozen=True, kw_only=True):
    """Text that follows a JSON schema."""

    raw_text: str
    """As sampled."""
    parsed_json: str
    schema: str
    """JSON text."""


Fragment = Text | Reasoning | FunctionCall | ToolResponse | StructuredOutput


# ---------------------------------------------------------------------------------------------- conversations


class ThreadTurn(Message, frozen=True, kw_only=True):
    """What one role said."""

    role: str
    content: tuple[Fragment, ...]
    weight: float
    flavor: Flavor = "PerToken"


class ThreadData(Message, frozen=True, kw_only=True):
    """A conversation in text."""

    turns: tuple[ThreadTurn, ...]
    uuid: str | None = None


class TokenTurn(Message, frozen=True, kw_only=True):
    """The tokens [start, stop) of a conversation: what one role said and its end-of-turn token, if it has one."""

    role: str
    start: int
    stop: int
    weight: float
    flavor: Flavor = "PerToken"
    content: tuple[Fragment, ...] = ()
    """The same turn in text."""


class TokenThreadData(Message, frozen=True, kw_only=True):
    """A conversation in tokens."""

    token_ids: tuple[int, ...]
    """All of it, role headers included, exactly as the model saw and sampled it."""
    turns: tuple[TokenTurn, ...]
    """In order, without overlap."""
