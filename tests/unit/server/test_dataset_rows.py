"""What rows of data sets may be, what is said of those that are wrong, and that recipes read the same out of both
forms.
"""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonia.client.data import DatasetPreferenceSample, read_threads
from harmonia.client.parameters.dataset_kinds import Completion, Metric, Preference, Prompt
from harmonia.errors import InvalidRequestError
from harmonia.server.db.metrics import Metric as KnownMetric
from harmonia.server.services.datasets import reader as dataset_reader
from harmonia.server.services.datasets.reader import DatasetReader
from harmonia.threads import StringThread

META = {"id": str(uuid.uuid4()), "created_at": 0}
USER = [{"role": "user", "content": "hi"}]
PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
READERS = {
    "PROMPT": Prompt,
    "PROMPT_COMPLETION": Completion,
    "PROMPT_COMPLETION_SCORE": Metric,
    "PREFERENCE": Preference,
}


def read(content: bytes, size: int = 1 << 20, **known: str) -> tuple[DatasetReader, bytes]:
    """The file in blocks of some size."""
    metrics = {key: KnownMetric(key=key, kind=kind) for key, kind in known.items()}
    reader = DatasetReader(uuid.UUID(int=1), 1_700_000_000_000, metrics)
    blocks = [reader.feed(content[at : at + size]) for at in range(0, len(content), size)]
    return reader, b"".join([*blocks, reader.finish()])


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def converted(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read(lines(*rows))[1].splitlines()]


def threads(content: bytes, kind: str | None = None) -> list[StringThread]:
    formats = {} if kind is None else {"formats": READERS[kind]().formats}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_bytes(content)
        return asyncio.run(read_threads(file, quiet=True, **formats))


# --------------------------------------------------------------------------------------------------- what is accepted


@pytest.mark.parametrize(
    ("row", "kind", "sample"),
    [
        ({"messages": USER}, "PROMPT", {"prompt": [["user", "hi"]]}),
        ({"input": USER, "completion": None}, "PROMPT", {"prompt": [["user", "hi"]]}),
        ({"messages": USER, "completion": ""}, "PROMPT_COMPLETION", {"completion": ["assistant", ""]}),
        (
            {"messages": [*USER, {"role": "assistant", "content": "yes"}], "id": 7},
            "PROMPT_COMPLETION",
            {"prompt": [["user", "hi"]], "completion": ["assistant", "yes"]},
        ),
        (
            {"messages": USER, "completion": "yes", "feedbacks": {"good": True, "stars": 4, "absent": None}},
            "PROMPT_COMPLETION_SCORE",
            {"metrics": {"good": 1.0, "stars": 4.0}},
        ),
        (
            {"messages": USER, "preferred_completion": "a", "other_completion": "b", "feedback_key": "taste"},
            "PREFERENCE",
            {"good_completion": ["assistant", "a"], "bad_completion": ["assistant", "b"], "metric": "taste"},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image", "url": PNG}]}
                ]
            },
            "PROMPT",
            {"prompt": [["user", [{"type": "text", "text": "see"}, {"type": "image", "url": PNG}]]]},
        ),
    ],
)
def test_each_schema_has_its_kind(row: dict[str, Any], kind: str, sample: dict[str, Any]) -> None:
    reader, out = read(lines(row | {"labels": {"lang": "de"}, "metadata": {"n": 1}}))
    assert (reader.kind, reader.records) == (kind, 1)
    (written,) = map(json.loads, out.splitlines())
    assert written.items() >= sample.items()
    metadata = written["metadata"]
    assert metadata["labels"] == {"lang": "de"}
    assert metadata["external_data"] == {"n": 1}
    assert metadata["created_at"] == 1_700_000_000


def test_a_file_is_what_all_its_rows_are() -> None:
    plain, answered = {"messages": USER}, {"messages": USER, "completion": "x"}
    scored = answered | {"feedbacks": {"good": 1}}
    assert read(lines(answered, scored))[0].kind == "PROMPT_COMPLETION_SCORE"
    assert read(lines(scored, plain))[0].kind == "PROMPT"


def test_kinds_of_metrics_follow_from_their_values() -> None:
    rows = [{"a": 1, "b": True, "c": 0.5, "d": 0}, {"a": 0, "b": 0, "c": 2, "d": True}]
    reader, _ = read(lines(*({"messages": USER, "completion": "x", "feedbacks": row} for row in rows)))
    assert {key: (use.kind, use.scores) for key, use in reader.metrics.items()} == {
        "a": ("SCALAR", 2),
        "b": ("BOOL", 2),
        "c": ("SCALAR", 2),
        "d": ("BOOL", 2),
    }


def test_marks_line_ends_and_blank_lines_do_not_matter() -> None:
    content = b"\xef\xbb\xbf\r\n" + lines(
        {"messages": USER}, {"messages": [{"role": "u\u2028", "content": "\U0001f600"}]}
    )
    content = content.replace(b"\n", b"\r\n\r\n").rstrip()
    reader, out = read(content)
    assert reader.records == 2
    assert [json.loads(line)["prompt"] for line in out.split(b"\n")[:2]] == [
        [["user", "hi"]],
        [["u\u2028", "\U0001f600"]],
    ]


def test_what_recipes_read_stays_as_it_is() -> None:
    rows = converted({"messages": USER, "completion": "x", "feedbacks": {"good": 1}, "labels": {"a": "b"}})
    assert converted(*rows) == rows
    preference = DatasetPreferenceSample.model_validate(
        converted({"messages": USER, "preferred_completion": "a", "other_completion": "b"})[0]
    )
    assert preference.good_completion.root == ["assistant", "a"]


# ------------------------------------------------------------------------------------------------------ what is not


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "'messages' is missing"),
        ({"message": USER}, "did you mean 'messages'"),
        ({"messages": USER, "feedback": {}}, "did you mean 'feedbacks'"),
        ({"messages": []}, "at least one message, got []"),
        ({"messages": "hi"}, "got 'hi'"),
        ({"messages": USER, "input": USER}, "both 'messages' and 'input'"),
        ({"messages": ["hi"]}, "messages[0] must be"),
        ({"messages": [{"role": 3, "content": "x"}]}, "messages[0].role must be a text"),
        ({"input": [*USER, {"role": "user"}]}, "input[1].content must be a text or a list of parts, got nothing"),
        ({"messages": [{"role": "a", "content": "", "tool_calls": [1]}]}, "function_call"),
        ({"messages": USER, "completion": 7}, "completion must be a text or a list of parts, got 7"),
        ({"messages": USER, "completion": [{"type": "video"}]}, "unknown fragment type 'video'"),
        ({"messages": USER, "feedbacks": {"good": 1}}, "give 'completion'"),
        ({"messages": USER, "completion": "x", "feedbacks": {"good": "yes"}}, "got 'yes'"),
        ({"messages": USER, "completion": "x", "feedbacks": {"good": 10**400}}, "must be a finite number"),
        ({"messages": USER, "completion": "x", "feedbacks": {"so good!": 1}}, "'so good!' is no key"),
        ({"messages": USER, "completion": "x", "feedbacks": [1]}, "feedbacks must be an object"),
        ({"messages": USER, "preferred_completion": "x"}, "'other_completion' is missing"),
        ({"messages": USER, "preferred_completion": "x", "other_completion": "y", "completion": "z"}, "leave it out"),
        ({"messages": USER, "feedback_key": "x"}, "'feedback_key' belongs to"),
        ({"messages": USER, "labels": {"a": 1}}, "labels.a must be a text, got 1"),
        ({"messages": USER, "metadata": "x"}, "metadata must be an object"),
        ({"prompt": [], "metadata": {"id": str(uuid.uuid4()), "created_at": 0}}, "'prompt' is empty"),
        ({"prompt": [["user", "x"]]}, "metadata"),
        ({"prompt": [["user", "x"]], "completion": "y", "metadata": META}, "completion: Input should be a valid list"),
        ({"prompt": [["user", "x"]], "metrics": {"good": 1}, "metadata": META}, "completion: Field required"),
        (
            {"prompt": [["user", "x"]], "bad_completion": ["a", "y"], "metadata": META},
            "good_completion: Field required",
        ),
    ],
)
def test_a_wrong_row_names_its_line_the_value_and_what_is_expected(row: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        read(lines({"messages": USER}, row))
    assert error.value.message.startswith("line 2: ")
    assert says in error.value.message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (None, "got nothing"),
        ("https://example.com/a.png", "not fetched"),
        ("data:image/svg+xml;base64,AAAA", "jpeg, png, webp or gif"),
        ("data:image/png;base64,????", "not base64"),
        ("data:image/jpeg;base64," + PNG.partition(",")[2], "the bytes are no jpeg"),
        ("data:image/png;base64," + "A" * (14 << 20), "exceeds"),
    ],
)
def test_images_are_small_and_come_along(url: str | None, says: str) -> None:
    part = {"type": "image", "url": url}
    with pytest.raises(InvalidRequestError, match="line 1: ") as error:
        read(lines({"messages": [{"role": "user", "content": [part]}]}))
    assert says in error.value.message
    assert len(error.value.message) < 500


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no rows"),
        (b"\n \r\n", "no rows"),
        (b"\xef\xbb\xbf", "no rows"),
        ('{"messages"'.encode("utf-16"), "UTF-16"),
        (b'{"messages": "\xff"}', "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b"[1]", "a row must be a JSON object in braces, got '[1]'"),
        (b"{" * 100_000, "not JSON"),
        (b"role,content\nuser,hi", "line 1: not JSON"),
    ],
)
def test_what_is_no_such_file_is_refused(content: bytes, says: str) -> None:
    for size in (1 << 20, 2):
        with pytest.raises(InvalidRequestError) as error:
            read(content, size)
        assert says in error.value.message


def test_ten_lines_are_listed_and_the_others_counted() -> None:
    with pytest.raises(InvalidRequestError) as error:
        read(lines(*[{"messages": USER}, {}] * 12))
    text = error.value.message
    assert text.count("line ") == 10
    assert "line 2: " in text and "line 20: " in text and text.endswith("and 2 more lines are wrong")


def test_preferences_are_alone_and_metrics_take_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    preference = {"messages": USER, "preferred_completion": "a", "other_completion": "b"}
    scored = {"messages": USER, "completion": "x", "feedbacks": {"good": 0.5}}
    for rows, says in (([preference, scored], "the rows before it are"), ([scored, preference], "are not")):
        with pytest.raises(InvalidRequestError, match=says):
            read(lines(*rows))
    with pytest.raises(InvalidRequestError, match="takes 0, 1, true and false"):
        read(lines(scored), good="BOOL")
    with pytest.raises(InvalidRequestError, match="line 2: the feedback 'good' is true here"):
        read(lines(scored, scored | {"feedbacks": {"good": True}}))
    monkeypatch.setattr(dataset_reader, "MAX_METRICS", 3)
    with pytest.raises(InvalidRequestError, match="line 4: 'k3' is one more than 3"):
        read(lines(*(scored | {"feedbacks": {f"k{at}": 1}} for at in range(4))))


def test_a_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_reader, "MAX_LINE_BYTES", 1000)
    with pytest.raises(InvalidRequestError, match="line 2 exceeds 1000 bytes"):
        read(lines({"messages": USER}) + bytes(2000), 100)


# ------------------------------------------------------------------------------------------------------- any rows

texts = st.text(st.characters(codec="utf-8"), max_size=8)
contents = texts | st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), min_size=1, max_size=2)
prompts = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": contents}), max_size=3
).map(lambda turns: [*turns, {"role": "user", "content": "?"}])
asides = st.fixed_dictionaries(
    {},
    optional={
        "labels": st.dictionaries(texts, texts, max_size=2),
        "metadata": st.dictionaries(texts, texts, max_size=2),
    },
)
scores = st.dictionaries(st.sampled_from("ab"), st.floats(-5, 5, allow_nan=False), min_size=1)
SCHEMAS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "PROMPT": st.fixed_dictionaries({"messages": prompts}),
    "PROMPT_COMPLETION": st.fixed_dictionaries({"input": prompts, "completion": contents}),
    "PROMPT_COMPLETION_SCORE": st.fixed_dictionaries(
        {"messages": prompts, "completion": contents, "feedbacks": scores}
    ),
    "PREFERENCE": st.fixed_dictionaries(
        {"messages": prompts, "preferred_completion": texts, "other_completion": texts, "feedback_key": st.just("k")}
    ),
}
files = st.sampled_from(sorted(SCHEMAS)).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.lists(st.builds(lambda row, aside: row | aside, SCHEMAS[kind], asides), min_size=1, max_size=4),
    )
)


@settings(max_examples=60, deadline=None)
@given(files, st.integers(1, 200), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_recipes_read_the_same_out_of_both_forms(
    file: tuple[str, list[dict[str, Any]]], size: int, line_end: str
) -> None:
    kind, rows = file
    original = line_end.join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    reader, recipe = read(original, size)
    assert (reader.kind, reader.records) == (kind, len(rows))
    ours, theirs = threads(recipe, kind), threads(original, kind if kind == "PROMPT" else None)
    assert [thread.get_fragments() for thread in ours] == [thread.get_fragments() for thread in theirs]
    if kind != "PREFERENCE":  # of two answers none is to be learnt, which the original does not tell
        assert [thread.get_turn_weights() for thread in ours] == [thread.get_turn_weights() for thread in theirs]
    assert [thread.metadata for thread in ours] == [thread.metadata for thread in theirs]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
strange_rows = st.dictionaries(
    st.sampled_from(["messages", "input", "prompt", "completion", "feedbacks", "labels", "metadata", "metrics"]),
    json_values | prompts,
    min_size=1,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(strange_rows.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=40), max_size=4))
def test_whatever_comes_is_read_or_refused_in_words(rows: list[bytes]) -> None:
    said = ""
    try:
        reader, out = read(b"\n".join(rows))
        assert len(out.split(b"\n")) == reader.records + 1
    except InvalidRequestError as error:
        said = error.message
    assert len(said) < 10_000
