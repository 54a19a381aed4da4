"""Files of rows become threads; what cannot be read is named by its line."""

import logging
from pathlib import Path
from typing import Any

import pytest

from harmonia.client.data import DatasetMetricSample, DatasetPromptSample, DatasetSample, read_threads
from harmonia.errors import InvalidRequestError
from tests.unit.parameters.rows import ASK, COMPLETION, HELLO, HI, META, METRIC, PREFERENCE, PROMPT, write

PROMPTS = (DatasetPromptSample,)


async def test_internal_rows_of_any_kind(tmp_path: Path) -> None:
    prompt, completion, metric, preference = await read_threads(
        write(tmp_path, PROMPT, COMPLETION, METRIC, PREFERENCE), feedback_key="correct"
    )
    assert prompt.get_turns() == preference.get_turns() == [("user", "Colour of the sky?")]
    assert prompt.get_turn_weights() == preference.get_turn_weights() == [0.0]
    assert completion.completion() == metric.completion() == "Blue."
    assert completion.get_turn_weights() == metric.get_turn_weights() == [0.0, 1.0]
    assert (prompt.metadata, completion.metadata, metric.metadata) == ({}, {}, {"res": 1.0})
    assert preference.metadata == {"preferred_completion": "Blue.", "other_completion": "Green."}


async def test_a_declared_kind_reads_richer_rows_as_its_own(tmp_path: Path) -> None:
    file = write(tmp_path, METRIC)
    (as_prompt,) = await read_threads(file, PROMPTS, feedback_key="correct")
    (as_completion,) = await read_threads(file, (DatasetSample,))
    assert as_prompt.get_turn_weights() == [0.0]
    assert as_completion.get_turn_weights() == [0.0, 1.0]


async def test_external_data_is_the_metadata(tmp_path: Path) -> None:
    row = {**METRIC, "metadata": {**META, "external_data": {"source": "web"}}}
    (thread,) = await read_threads(write(tmp_path, row), feedback_key="correct")
    assert thread.metadata == {"source": "web", "res": 1.0}


async def test_minimal_external_rows(tmp_path: Path) -> None:
    threads = await read_threads(
        write(tmp_path, {"messages": [HI]}, {"input": [HI], "completion": "Hello!"}, {"messages": [HI, HELLO]})
    )
    assert [thread.get_turns() for thread in threads] == [[("user", "Hi")]] + 2 * [
        [("user", "Hi"), ("assistant", "Hello!")]
    ]
    assert [thread.get_turn_weights() for thread in threads] == [[0.0], [0.0, 1.0], [0.0, 1.0]]
    assert [thread.metadata for thread in threads] == [{}, {}, {}]


async def test_input_comes_before_messages(tmp_path: Path) -> None:
    (thread,) = await read_threads(write(tmp_path, {"messages": [HELLO], "input": [HI]}))
    assert thread.get_turns() == [("user", "Hi")]


async def test_only_the_last_assistant_turn_weighs(tmp_path: Path) -> None:
    (thread,) = await read_threads(write(tmp_path, {"messages": [HI, HELLO, HI], "completion": "Again!"}))
    assert thread.get_turn_weights() == [0.0, 0.0, 0.0, 1.0]


async def test_external_prompts_lose_their_answers(tmp_path: Path) -> None:
    rows = [{"messages": [HI, HELLO, HELLO]}, {"input": [HI], "completion": "Hello!", "metadata": {"id": 3}}]
    threads = await read_threads(write(tmp_path, *rows), PROMPTS)
    assert [thread.get_turns() for thread in threads] == [[("user", "Hi")]] * 2
    assert [thread.get_turn_weights() for thread in threads] == [[0.0]] * 2
    assert threads[1].metadata == {"id": 3}


async def test_external_feedback_and_preferences(tmp_path: Path) -> None:
    feedback = {"messages": [HI, HELLO], "feedbacks": {"stars": 4, "other": 1}, "metadata": {"id": 3}}
    preference = {"messages": [HI], "preferred_completion": "a", "other_completion": "b", "feedbacks": None}
    rated, compared = await read_threads(write(tmp_path, feedback, preference), feedback_key="stars")
    assert rated.metadata == {"id": 3, "res": 4}
    assert compared.metadata == {"res": None, "preferred_completion": "a", "other_completion": "b"}


async def test_fragments_survive(tmp_path: Path) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}"}
    (thread,) = await read_threads(
        write(tmp_path, {"messages": [HI, {"role": "assistant", "content": [call]}]}),
    )
    assert thread.get_fragments()[1] == ("assistant", [call])


async def test_blank_lines_and_byte_order_marks_do_not_matter(tmp_path: Path) -> None:
    row = b'\xef\xbb\xbf{"messages": [{"role": "user", "content": "Hi"}]}\r'
    (thread,) = await read_threads(write(tmp_path, b"", b"  \r", row, b""))
    assert thread.get_turns() == [("user", "Hi")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{oops}", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b"\xff{}", "not JSON: 'utf-8' codec"),
        (b"[" * 100_000, "not JSON: maximum recursion depth"),
        ([1, 2], "a row must be an object"),
        ({"messages": "Hi"}, "'messages' must be a list, not 'Hi'"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": ["Hi"]}, "a message is {'role': ..., 'content': ...}, not 'Hi'"),
        ({"messages": [{"role": "user"}]}, "a message is"),
        ({"messages": [{"role": "user", "content": None}]}, "content must be str, not NoneType"),
        ({"messages": [{"role": 3, "content": "Hi"}]}, "role must be str, not int"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "Invalid dataset format"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "unknown fragment type 'smell'"),
        ({"messages": [{**HELLO, "tool_calls": [{}]}]}, "'tool_calls' are not read"),
        ({"messages": [HI], "completion": 3}, "content must be str, not int"),
        ({"messages": [HI], "feedbacks": [1]}, "'feedbacks' must be an object"),
        ({"messages": [HI], "preferred_completion": "a"}, "other_completion must be a text, not None"),
        ({"messages": [HI], "metadata": "x", "feedbacks": {"stars": 1}}, "metadata must be an object, so that res"),
    ],
    ids=lambda value: None if isinstance(value, str) else "row",
)
async def test_unreadable_external_lines_are_named(tmp_path: Path, line: Any, problem: str) -> None:
    file = write(tmp_path, {"messages": [HI], "feedbacks": {"stars": 1}}, line, {"messages": [HI]})
    with pytest.raises(InvalidRequestError) as caught:
        await read_threads(file, feedback_key="stars")
    assert caught.value.message.startswith("rows.jsonl line 2: ")
    assert problem in caught.value.message
    assert caught.value.details["lines"] == [2]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": ASK, "metadata": {"created_at": 1}}, "metadata.id: Field required"),
        ({"prompt": [["user"]], "metadata": META}, "a turn is [role, text] or [role, list of fragments]"),
        ({"prompt": [], "metadata": META}, "the conversation is empty"),
        ({"prompt": "Hi", "metadata": META}, "prompt: Input should be a valid list"),
        ({"messages": [HI]}, "rows without metadata are written"),
    ],
)
async def test_unreadable_internal_lines_are_named(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl line 2: ") as caught:
        await read_threads(write(tmp_path, PROMPT, row))
    assert problem in str(caught.value)


async def test_an_internal_first_row_that_is_wrong_is_named_and_not_skipped(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="line 1: metadata: Field required; rows without metadata are writt"):
        await read_threads(write(tmp_path, {"prompt": ASK}, PROMPT))


async def test_a_declared_kind_says_what_its_rows_lack(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="line 2: metrics: Field required"):
        await read_threads(write(tmp_path, METRIC, COMPLETION), (DatasetMetricSample,))


async def test_many_unreadable_lines_are_all_known(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"line 10: not JSON.*; and 15 more lines$") as caught:
        await read_threads(write(tmp_path, *[b"x"] * 25))
    assert caught.value.details["lines"] == list(range(1, 26))


async def test_rows_without_a_conversation_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, {"comment": 1}, {"messages": [HI]}, PROMPT, {"input": None})
    with caplog.at_level(logging.WARNING, "harmonia"):
        assert len(await read_threads(file)) == 1
    assert caplog.messages == ["rows.jsonl: skipped 3 rows without a conversation: lines 1, 3, 4"]


@pytest.mark.parametrize("lines", [[], [b"", b" "], [{"comment": 1}, {}]])
async def test_a_file_without_a_usable_row(tmp_path: Path, lines: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl has no usable row: .*; write one object per line"):
        await read_threads(write(tmp_path, *lines))


async def test_a_feedback_that_no_row_has(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"no row of rows\.jsonl has the feedback 'stars'"):
        await read_threads(write(tmp_path, METRIC), feedback_key="stars")


async def test_a_feedback_that_some_rows_lack(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "harmonia"):
        threads = await read_threads(write(tmp_path, METRIC, {**METRIC, "metrics": {}}), feedback_key="correct")
    assert [thread.metadata["res"] for thread in threads] == [1.0, None]
    assert caplog.messages == ["rows.jsonl: 1 rows lack the feedback 'correct'"]


async def test_a_prompt_among_rated_rows_lacks_the_feedback(tmp_path: Path) -> None:
    listed = {**PROMPT, "metadata": {**META, "external_data": ["not", "an", "object"]}}
    threads = await read_threads(write(tmp_path, METRIC, listed), feedback_key="correct")
    assert [thread.metadata for thread in threads] == [{"res": 1.0}, ["not", "an", "object"]]


async def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidRequestError, match=f"cannot read the data set {path}: {reason}"):
            await read_threads(path)


async def test_completions_need_an_answer(tmp_path: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "Hi"}]}
    strange = {"messages": [*asked["messages"], {"role": "bot", "content": "Hello"}]}
    answered = asked | {"completion": "Hello"}
    file = write(tmp_path, answered, asked, strange)
    with pytest.raises(InvalidRequestError, match=r"line 2: .*; line 3: .*the roles are 'user', 'bot'"):
        await read_threads(file, (DatasetSample,))
    assert len(await read_threads(file)) == 3
