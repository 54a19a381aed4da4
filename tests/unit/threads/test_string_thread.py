"""A thread of text is an immutable value with the weighting rules that recipes rely on."""

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pydantic
import pytest

from harmonia.errors import HarmoniaError
from harmonia.threads import StringThread, StringTurn


class City(pydantic.BaseModel):
    name: str


@pytest.fixture
def talk() -> StringThread:
    """Two answers and a last question."""
    return StringThread([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")])


# ---------------------------------------------------------------------------------------------- constructor


@pytest.mark.parametrize("role", ["user", "assistant", "system", "tool", "narrator"])
def test_the_constructor_weighs_the_last_turn_whatever_its_role(role: str) -> None:
    assert StringThread([("user", "a"), (role, "b")]).get_turn_weights() == [0.0, 1.0]


@pytest.mark.parametrize("turns", [[("user", "hi")], (("user", "hi"),), [StringTurn("user", "hi")]])
def test_turns_may_be_any_sequence_of_tuples(turns: Any) -> None:
    assert StringThread(turns).get_turns() == [("user", "hi")]


def test_a_thread_may_be_empty() -> None:
    for thread in (StringThread(), StringThread(None), StringThread([]), StringThread(turns=None, metadata=None)):
        assert thread.get_turns() == [] and thread.get_turn_weights() == [] and thread.metadata is None


@pytest.mark.parametrize("turns", ["ab", "", [["user", "hi"]], [("user", 1)], [(None, "hi")], ["hi"], 3, iter([])])
def test_other_types_are_refused(turns: Any) -> None:
    with pytest.raises(TypeError):
        StringThread(turns)


@pytest.mark.parametrize("turn", [(), ("user",), ("user", "hi", "there")])
def test_tuples_that_are_no_pairs_are_refused(turn: Any) -> None:
    with pytest.raises(ValueError, match=f"has {len(turn)} items"):
        StringThread([turn])


def test_text_that_cannot_travel_is_refused_at_once() -> None:
    with pytest.raises(UnicodeEncodeError):
        StringThread([("user", "half a pair \ud83d")])


# ---------------------------------------------------------------------------------------------- builders


def test_builders_append_with_the_weight_of_their_role() -> None:
    thread = StringThread().system("s").user("u").assistant("a").tool("t", "call-1").tool("t")
    assert [turn.role for turn in thread.get_turns()] == ["system", "user", "assistant", "tool", "tool"]
    assert thread.get_turn_weights() == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_builders_leave_earlier_weights_and_the_original_alone() -> None:
    prompt = StringThread([("user", "hi")])
    assert prompt.assistant("yes").get_turn_weights() == [1.0, 1.0]
    assert prompt.get_turns() == [("user", "hi")]


@pytest.mark.parametrize("name", ["user", "system", "assistant", "tool"])
def test_builders_take_text_only(name: str) -> None:
    with pytest.raises(TypeError):
        getattr(StringThread(), name)(5)


def test_structured_appends_an_object_with_its_schema() -> None:
    thread = StringThread([("user", "where?")]).structured(City(name="Oslo"))
    (fragment,) = thread.last_turn_fragments()
    assert fragment["raw_text"] == fragment["parsed_json"] == '{"name":"Oslo"}'
    assert '"title": "City"' in fragment["schema"]
    assert thread.get_turn_weights()[-1] == 1.0 and thread.get_turns()[-1].role == "assistant"


def test_structured_takes_pydantic_objects_only() -> None:
    with pytest.raises(AttributeError):
        StringThread().structured("Oslo")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- metadata


def test_builders_share_the_metadata_object() -> None:
    metadata: dict[str, int] = {}
    thread = StringThread([("user", "hi")], metadata)
    later = thread.assistant("yes").with_weight_all_assistant_turns()
    metadata["sample_index"] = 3
    assert later.metadata is metadata and thread.metadata is metadata


def test_rebinding_metadata_touches_one_thread_only() -> None:
    thread = StringThread([("user", "hi")], {"id": 1})
    later = thread.user("more")
    later.metadata = {"id": 2}
    assert (thread.metadata, later.metadata) == ({"id": 1}, {"id": 2})


def test_metadata_cannot_be_deleted() -> None:
    with pytest.raises(AttributeError):
        del StringThread().metadata


# ---------------------------------------------------------------------------------------------- weights


def test_all_assistant_turns(talk: StringThread) -> None:
    assert talk.get_turn_weights() == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert talk.with_weight_all_assistant_turns().get_turn_weights() == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_roles_are_compared_exactly() -> None:
    thread = StringThread([("Assistant", "a"), ("assistant ", "b")])
    assert thread.with_weight_all_assistant_turns().get_turn_weights() == [0.0, 0.0]


def test_last_assistant_turn_need_not_be_the_last_turn(talk: StringThread) -> None:
    assert talk.with_weight_last_assistant_turn().get_turn_weights() == [0.0, 0.0, 0.0, 1.0, 0.0]


def test_without_assistant_turns_nothing_weighs() -> None:
    thread = StringThread([("user", "a")])
    assert thread.with_weight_last_assistant_turn().get_turn_weights() == [0.0]


@pytest.mark.parametrize(("start", "second", "fourth"), [(0, 1.0, 1.0), (1, 0.0, 1.0), (2, 0.0, 0.0), (9, 0.0, 0.0)])
def test_the_index_counts_assistant_turns(talk: StringThread, start: int, second: float, fourth: float) -> None:
    weighed = talk.with_weight_assistant_turns_from_index(start)
    assert weighed.get_turn_weights() == [0.0, second, 0.0, fourth, 0.0]


@pytest.mark.parametrize(("start", "error"), [(-1, OverflowError), (1.0, TypeError), ("1", TypeError)])
def test_bad_indices(talk: StringThread, start: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        talk.with_weight_assistant_turns_from_index(start)


# ---------------------------------------------------------------------------------------------- reading


def test_turns_are_named_tuples(talk: StringThread) -> None:
    first = talk.get_turns()[0]
    assert isinstance(first, StringTurn) and (first.role, first.content) == first == ("user", "a")


def test_a_tool_turn_reads_empty() -> None:
    assert StringThread().tool("42", "call-1").get_turns() == [("tool", "")]


def test_last_content_of_an_object_is_its_json() -> None:
    assert StringThread().structured(City(name="Oslo")).last_content() == '{"name":"Oslo"}'


@pytest.mark.parametrize("name", ["last_content", "last_turn_fragments"])
def test_empty_threads_have_no_last_turn(name: str) -> None:
    with pytest.raises(HarmoniaError, match=r"^Empty thread error$"):
        getattr(StringThread(), name)()


def test_completion_is_what_the_assistant_said_last(talk: StringThread) -> None:
    assert talk.completion() is None and StringThread().completion() is None
    assert talk.assistant("yes").completion() == "yes"


def test_messages_leave_out_a_final_answer(talk: StringThread) -> None:
    assert talk.messages() == talk.get_turns() == talk.assistant("yes").messages()
    assert all(type(message) is tuple for message in talk.messages())
    assert StringThread().messages() == []


@pytest.mark.parametrize("name", ["get_turns", "get_turn_weights", "get_fragments", "last_turn_fragments"])
def test_getters_return_fresh_lists(talk: StringThread, name: str) -> None:
    get: Callable[[], list[Any]] = getattr(talk, name)
    get().clear()
    assert len(get()) > 0


# ---------------------------------------------------------------------------------------------- what kind of object


def test_threads_equal_only_themselves() -> None:
    thread, same = StringThread([("user", "hi")]), StringThread([("user", "hi")])
    assert thread in [thread] and thread != same
    assert len({thread, same, thread}) == 2


@pytest.mark.parametrize("function", [copy.copy, copy.deepcopy, pickle.dumps, len, iter])
def test_threads_cannot_be_copied_pickled_or_iterated(function: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError):
        function(StringThread([("user", "hi")]))


def test_threads_take_no_further_attributes() -> None:
    with pytest.raises(AttributeError):
        StringThread().note = "x"  # type: ignore[attr-defined]


def test_threads_cannot_be_subclassed() -> None:
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Mine", (StringThread,), {})


def test_str_is_repr_and_shows_everything_of_note(talk: StringThread) -> None:
    talk.metadata = {"id": 7}
    assert str(talk) == repr(talk)
    assert "('assistant', 'd')" in str(talk) and "{'id': 7}" in str(talk)


def test_representations_can_be_replaced_on_the_class(talk: StringThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StringThread, "__repr__", lambda self: f"<{len(self.get_turns())} turns>")
    monkeypatch.setattr(StringThread, "_repr_html_", lambda self: f"<b>{self}</b>")
    assert (str(talk), f"{talk}", talk._repr_html_()) == ("<5 turns>", "<5 turns>", "<b><5 turns></b>")


def test_html_is_escaped() -> None:
    assert "&lt;script&gt;" in StringThread([("user", "<script>")])._repr_html_()


async def test_asynchronous_constructors_give_coroutines() -> None:
    for coroutine in (StringThread.from_fragments([]), StringThread.from_dataset([], None)):
        assert inspect.iscoroutine(coroutine)
        assert (await coroutine).get_turns() == []


def test_threads_load_nothing_heavy() -> None:
    code = "import sys, harmonia.threads; print({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
