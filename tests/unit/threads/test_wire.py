"""Threads travel and come back, without their metadata."""

import math

import msgspec
import pytest
from hypothesis import given

from harmonia.errors import InvalidRequestError
from harmonia.protocol.threads import Text, ThreadData, ThreadTurn, TokenThreadData
from harmonia.threads import StringThread, TokenizedThread
from tests.unit.threads import strategies


@given(strategies.threads)
def test_text_travels(data: ThreadData) -> None:
    sent = msgspec.msgpack.encode(StringThread.from_data(data).to_data())
    metadata = {"id": 1}
    thread = StringThread.from_data(msgspec.msgpack.decode(sent, type=ThreadData), metadata)
    assert thread.to_data() == data and thread.metadata is metadata


@given(strategies.token_threads())
def test_tokens_travel(data: TokenThreadData) -> None:
    sent = msgspec.msgpack.encode(TokenizedThread.from_data(data).to_data())
    metadata = {"id": 1}
    thread = TokenizedThread.from_data(msgspec.msgpack.decode(sent, type=TokenThreadData), metadata)
    assert thread.to_data() == data and thread.metadata is metadata


def test_a_thread_that_was_built_is_what_travels() -> None:
    data = StringThread([("user", "hi")]).assistant("yes").to_data()
    user = ThreadTurn(role="user", content=(Text(text="hi"),), weight=1.0)
    assert data == ThreadData(turns=(user, ThreadTurn(role="assistant", content=(Text(text="yes"),), weight=1.0)))


@given(strategies.threads)
def test_what_threads_show_does_not_change_on_the_way(data: ThreadData) -> None:
    thread = StringThread.from_data(data)
    again = StringThread.from_data(msgspec.json.decode(msgspec.json.encode(data), type=ThreadData))
    assert again.get_fragments() == thread.get_fragments() and again.get_turns() == thread.get_turns()
    assert again.get_turn_weights() == thread.get_turn_weights() and again.uuid() == thread.uuid()


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e39])
def test_weights_that_are_no_numbers_are_refused(weight: float) -> None:
    turn = ThreadTurn(role="user", content=(), weight=weight)
    with pytest.raises(InvalidRequestError, match=r"weight of turn 0: .* finite"):
        StringThread.from_data(ThreadData(turns=(turn,)))
