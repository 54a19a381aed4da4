"""The parts of a conversation that judges look at."""

from harmonia.client import StringThread
from harmonia.graders.turns import separate_context_from_last_user_turn

LONG = StringThread([("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")])


def test_the_last_question_and_what_was_before() -> None:
    assert separate_context_from_last_user_turn(LONG) == ([("user", "a"), ("assistant", "b")], "c")
    with_system, _ = separate_context_from_last_user_turn(LONG, include_system_prompt=True)
    assert with_system[0] == ("system", "s") and with_system[0].role == "system"
    assert separate_context_from_last_user_turn(LONG.user("e"))[1] == "e"
    assert separate_context_from_last_user_turn(StringThread([("assistant", "hi")])) == ([], None)
