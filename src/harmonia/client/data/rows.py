"""One row of a data set as a thread.

Prompts weigh nothing; of a conversation with an answer the last assistant turn weighs 1. `metadata` is the row's or
`{}`, with `res` (the value of the wanted feedback) or the texts of two answers added to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harmonia.client.data.formats import (
    DatasetMetricSample,
    DatasetPreferenceSample,
    DatasetPromptSample,
    DatasetSampleType,
)
from harmonia.errors import InvalidRequestError
from harmonia.threads import StringThread

Row = Mapping[str, Any]

FEEDBACK = "res"
_MESSAGES = ("input", "messages")  # the first that is there counts
_PREFERRED, _OTHER = "preferred_completion", "other_completion"


async def internal_thread(sample: DatasetSampleType, feedback_key: str | None = None) -> StringThread:
    """The thread of a row as the control plane stores it."""
    turns = [turn.root for turn in sample.prompt]
    own = sample.metadata.external_data
    match sample:
        case DatasetPromptSample():
            return await _thread(turns, own)
        case DatasetPreferenceSample():
            answers = (sample.good_completion.root[1], sample.bad_completion.root[1])
            return await _thread(turns, own, _preference(*answers))
    feedback = _feedback(sample.metrics, feedback_key) if isinstance(sample, DatasetMetricSample) else {}
    thread = await _thread([*turns, sample.completion.root], own, feedback)
    return thread.with_weight_last_assistant_turn()


def is_external(row: Row) -> bool:
    """Whether a row has a conversation as people write it."""
    return any(row.get(name) is not None for name in _MESSAGES)


async def external_thread(row: Row, is_prompt: bool = False, feedback_key: str | None = None) -> StringThread:
    """The thread of a row as people write it; of a prompt, without the answer."""
    name = next(name for name in _MESSAGES if row.get(name) is not None)
    turns = [_turn(message) for message in _expect(row, name, list)]
    extra = _feedback(_expect(row, "feedbacks", dict), feedback_key)
    if row.get(_PREFERRED) is not None or row.get(_OTHER) is not None:
        extra |= _preference(row.get(_PREFERRED), row.get(_OTHER))
    if not is_prompt:
        answer = [] if row.get("completion") is None else [["assistant", row["completion"]]]
        thread = await _thread([*turns, *answer], row.get("metadata"), extra)
        return thread.with_weight_last_assistant_turn()
    while turns and turns[-1][0] == "assistant":
        turns.pop()
    return await _thread(turns, row.get("metadata"), extra)


def _turn(message: object) -> list[Any]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise InvalidRequestError(f"a message is {{'role': ..., 'content': ...}}, not {message!r:.80}")
    if message.get("tool_calls"):
        raise InvalidRequestError("'tool_calls' are not read; write each as a function_call fragment in 'content'")
    return [message["role"], message["content"]]


async def _thread(turns: Sequence[Sequence[Any]], metadata: Any, extra: Row | None = None) -> StringThread:
    if not turns:
        raise InvalidRequestError("the conversation is empty; it needs at least one turn")
    metadata = metadata or {}
    if extra:
        if not isinstance(metadata, dict):
            raise InvalidRequestError(f"metadata must be an object, so that {', '.join(extra)} can be added to it")
        metadata = {**metadata, **extra}
    return await StringThread.from_dataset(turns, metadata)


def _feedback(feedbacks: Row, feedback_key: str | None) -> dict[str, Any]:
    return {} if feedback_key is None else {FEEDBACK: feedbacks.get(feedback_key)}


def _preference(preferred: object, other: object) -> dict[str, str]:
    return {_PREFERRED: _text(preferred, _PREFERRED), _OTHER: _text(other, _OTHER)}


def _text(content: object, name: str) -> str:
    """What an answer says: a text, or the texts among its fragments."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(fragment, dict) for fragment in content):
        raise InvalidRequestError(f"{name} must be a text, not {content!r:.80}")
    texts = [fragment for fragment in content if fragment.get("type") == "text"]
    return "".join(str(fragment.get("text") or fragment.get("value") or "") for fragment in texts)


def _expect(row: Row, name: str, kind: type[Any]) -> Any:
    """The value of a key, which may be absent or null."""
    value = row.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InvalidRequestError(f"{name!r} must be {'a list' if kind is list else 'an object'}, not {value!r:.80}")
    return value
