"""A thread of tokens: turns are runs of tokens, and weights are spread over them."""

import copy
from typing import Any

import pytest
from hypothesis import given

from harmonia.errors import InvalidRequestError
from harmonia.protocol.threads import Flavor, StructuredOutput, Text, TokenThreadData, TokenTurn
from harmonia.threads import TokenizedThread, TokenizedTurn
from tests.unit.threads import strategies

QUESTION = TokenTurn(role="user", start=1, stop=3, weight=0.0, content=(Text(text="hi"),))
ANSWER = TokenTurn(
    role="assistant",
    start=4,
    stop=8,
    weight=2.0,
    content=(Text(text="so "), StructuredOutput(raw_text="{} ", parsed_json="{}", schema="{}")),
)
TOKENS = (100, 11, 12, 101, 21, 22, 23, 99, 102)


def thread(*turns: TokenTurn, metadata: Any = None) -> TokenizedThread:
    return TokenizedThread.from_data(TokenThreadData(token_ids=TOKENS, turns=turns), metadata)


def answer(flavor: Flavor, *, start: int = 4, stop: int = 8) -> TokenTurn:
    return TokenTurn(role="assistant", start=start, stop=stop, weight=2.0, flavor=flavor)


# ---------------------------------------------------------------------------------------------- reading


def test_turns_are_their_tokens_with_the_end_of_turn() -> None:
    spoken = thread(QUESTION, ANSWER)
    assert spoken.get_turns() == spoken.turns() == [("user", [11, 12]), ("assistant", [21, 22, 23, 99])]
    assert isinstance(spoken.get_turns()[0], TokenizedTurn)


def test_token_ids_are_the_whole_conversation() -> None:
    assert thread(QUESTION, ANSWER).token_ids == TOKENS


def test_last_turn() -> None:
    spoken = thread(QUESTION, ANSWER)
    assert spoken.last_content() == [21, 22, 23, 99]
    assert spoken.len_last_turn() == 4


def test_an_empty_thread_has_no_last_turn() -> None:
    assert thread().last_content() is None and thread().len_last_turn() == 0 and thread().get_turns() == []


def test_a_constrained_answer_ends_with_its_json() -> None:
    role, fragments = thread(QUESTION, ANSWER).get_fragments()[-1]
    assert role == "assistant" and fragments[0] == {"type": "text", "text": "so "}
    assert fragments[-1]["parsed_json"] == "{}"


def test_detokenized_keeps_text_weights_and_metadata() -> None:
    spoken = thread(QUESTION, ANSWER, metadata={"id": 1})
    text = spoken.detokenized()
    assert text.get_turns() == [("user", "hi"), ("assistant", "so {}")] and text.last_content() == "{}"
    assert text.get_turn_weights() == [0.0, 2.0] and text.metadata is spoken.metadata


# ---------------------------------------------------------------------------------------------- weights


def test_turn_weights_can_be_chosen_as_for_text() -> None:
    spoken = thread(QUESTION, answer("PerToken", stop=6), answer("PerToken", start=7))
    assert spoken.get_turn_weights() == [0.0, 2.0, 2.0]
    assert spoken.with_weight_all_assistant_turns().get_turn_weights() == [0.0, 1.0, 1.0]
    assert spoken.with_weight_last_assistant_turn().get_turn_weights() == [0.0, 0.0, 1.0]
    assert spoken.with_weight_assistant_turns_from_index(1).get_turn_weights() == [0.0, 0.0, 1.0]
    assert spoken.get_turn_weights() == [0.0, 2.0, 2.0]


def test_per_token_gives_every_token_the_weight() -> None:
    assert thread(QUESTION, answer("PerToken")).weights == (0, 0, 0, 0, 2, 2, 2, 2, 0)


def test_normalized_gives_every_token_an_equal_share() -> None:
    assert thread(QUESTION, answer("Normalized")).weights == (0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0)


def test_last_token_gives_the_last_token_all() -> None:
    assert thread(QUESTION, answer("LastToken")).weights == (0, 0, 0, 0, 0, 0, 0, 2, 0)


@pytest.mark.parametrize("flavor", ["PerToken", "Normalized", "LastToken"])
def test_a_turn_without_tokens_weighs_nothing(flavor: Flavor) -> None:
    assert thread(answer(flavor, start=4, stop=4)).weights == (0,) * len(TOKENS)


def test_flavors_stay_when_weights_change() -> None:
    assert thread(answer("LastToken")).with_weight_all_assistant_turns().weights == (0, 0, 0, 0, 0, 0, 0, 1, 0)


@given(strategies.token_threads())
def test_tokens_outside_of_turns_weigh_nothing(data: TokenThreadData) -> None:
    weights = TokenizedThread.from_data(data).weights
    inside = {i for turn in data.turns for i in range(turn.start, turn.stop)}
    assert len(weights) == len(data.token_ids)
    assert all(weight == 0 for i, weight in enumerate(weights) if i not in inside)


# ---------------------------------------------------------------------------------------------- what kind of object


def test_metadata_is_carried_by_reference() -> None:
    metadata = {"id": 1}
    spoken = thread(ANSWER, metadata=metadata)
    assert spoken.with_weight_all_assistant_turns().metadata is metadata
    assert thread(ANSWER).metadata is None


def test_callers_cannot_make_one() -> None:
    for arguments in [(), ([],), ([1, 2], None)]:
        with pytest.raises(TypeError, match="cannot create 'TokenizedThread' instances"):
            TokenizedThread(*arguments)
    with pytest.raises(TypeError):
        type("Mine", (TokenizedThread,), {})


def test_it_is_one_of_a_kind() -> None:
    assert thread(ANSWER) != thread(ANSWER) and hash(thread(ANSWER)) is not None
    with pytest.raises(TypeError):
        copy.deepcopy(thread(ANSWER))
    with pytest.raises(AttributeError):
        thread(ANSWER).note = 1  # type: ignore[attr-defined]


def test_the_representation_can_be_replaced_on_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "('user', [11, 12])" in str(thread(QUESTION))
    monkeypatch.setattr(TokenizedThread, "__repr__", lambda self: f"<{len(self.token_ids)} tokens>")
    assert str(thread(QUESTION)) == "<9 tokens>"


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (2, 5), (8, 10), (20, 21)])
def test_turns_that_overlap_or_leave_the_tokens_are_refused(start: int, stop: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"turn 1 is tokens .* without overlap"):
        thread(QUESTION, answer("PerToken", start=start, stop=stop))
