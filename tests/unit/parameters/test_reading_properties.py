"""Any file of valid rows reads back; any line that is garbage is named."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonia.client.data import DatasetPromptSample, read_threads
from harmonia.errors import InvalidRequestError
from tests.unit.parameters.rows import META, write

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
turns = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), texts), min_size=1, max_size=5)
metadata = st.dictionaries(texts, st.none() | st.integers() | texts, max_size=3)
conversations = st.lists(st.tuples(turns, metadata), min_size=1, max_size=6)


def is_row(line: bytes) -> bool:
    """Whether a line is blank or an object, and so no garbage."""
    try:
        return not line.strip() or isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


garbage = st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")).filter(lambda line: not is_row(line))


def read(*lines: Any, **options: Any) -> list[Any]:
    """The threads of a file of these lines."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(read_threads(write(Path(folder), *lines), **options))


@given(conversations)
def test_external_rows_round_trip(rows: list[Any]) -> None:
    lines = [
        {"messages": [{"role": role, "content": text} for role, text in turns], "metadata": meta}
        for turns, meta in rows
    ]
    threads = read(*lines)
    assert [(thread.get_turns(), thread.metadata) for thread in threads] == rows
    for thread in threads:
        assert thread.get_turn_weights() == thread.with_weight_last_assistant_turn().get_turn_weights()


@given(conversations)
def test_internal_rows_round_trip(rows: list[Any]) -> None:
    lines = [{"prompt": turns, "metadata": {**META, "external_data": meta}} for turns, meta in rows]
    for options in ({}, {"formats": (DatasetPromptSample,)}):
        threads = read(*lines, **options)
        assert [(thread.get_turns(), thread.metadata) for thread in threads] == rows
        assert not any(weight for thread in threads for weight in thread.get_turn_weights())


@given(st.lists(st.none() | garbage, min_size=1, max_size=8).filter(any))
def test_garbage_is_named_by_line(lines: list[bytes | None]) -> None:
    bad = [number for number, line in enumerate(lines, 1) if line is not None]
    row = {"messages": [{"role": "user", "content": "Hi"}]}
    with pytest.raises(InvalidRequestError) as caught:
        read(*(row if line is None else line for line in lines))
    assert caught.value.details["lines"] == bad
    assert all(f"line {number}: " in caught.value.message for number in bad)
