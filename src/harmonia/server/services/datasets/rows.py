"""Rows of data sets: what people may write, checked value by value, and what recipes read.

A row is a JSON object on a line of its own: `messages` (or `input`), a list of `{"role", "content"}`, and perhaps
`completion`, and with that `feedbacks`, or instead `preferred_completion` and `other_completion` with a `feedback_key`;
perhaps `labels` and `metadata`. Contents are texts or lists of parts, of which images are data URIs. Rows in the form
that recipes read (`prompt` and `metadata`) stay as they are.
"""

from __future__ import annotations

import binascii
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harmonia.client.data.formats import (
    DatasetMetricSample,
    DatasetPreferenceSample,
    DatasetPromptSample,
    DatasetSample,
    DatasetSampleType,
    parse_sample,
)
from harmonia.errors import InvalidRequestError
from harmonia.server.services.keys import checked_key
from harmonia.threads import fragments

PROMPT, COMPLETION, SCORE, PREFERENCE = "PROMPT", "PROMPT_COMPLETION", "PROMPT_COMPLETION_SCORE", "PREFERENCE"
MAX_IMAGE_BYTES = 10 << 20

_KEYS = (
    "messages",
    "input",
    "completion",
    "feedbacks",
    "preferred_completion",
    "other_completion",
    "feedback_key",
    "labels",
    "metadata",
)
_NEARLY = 0.88  # `feedback` and `message` are meant to be other keys, `completion_id` is not
_EXAMPLE = '{"messages": [{"role": "user", "content": "..."}], "completion": "..."}'
_DATA_URI = re.compile(r"data:image/(jpeg|png|webp|gif);base64,")
_SIGNATURES = {"jpeg": (b"\xff\xd8\xff",), "png": (b"\x89PNG\r\n\x1a\n",), "gif": (b"GIF87a", b"GIF89a")}
_SAMPLE_KINDS: dict[type[DatasetSampleType], str] = {
    DatasetPromptSample: PROMPT,
    DatasetSample: COMPLETION,
    DatasetMetricSample: SCORE,
    DatasetPreferenceSample: PREFERENCE,
}
_RECIPE_FORMS: dict[str, type[DatasetSampleType]] = {
    "good_completion": DatasetPreferenceSample,
    "bad_completion": DatasetPreferenceSample,
    "metrics": DatasetMetricSample,
    "completion": DatasetSample,
}
"""By the first of these keys that a row has."""

Turn = list[Any]
"""`[role, content]`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row. sample: without its id and moment, which whoever stores it knows."""

    kind: str
    sample: dict[str, Any]
    scores: Mapping[str, bool | float] = field(default_factory=dict)
    comparison: str | None = None
    """The metric of a preference, if the row names one."""


def parse_row(raw: Mapping[str, Any]) -> Row:
    """A row out of the object on its line; `InvalidRequestError` names the value at fault and what is expected."""
    given = {key: value for key, value in raw.items() if value is not None}
    if "prompt" in given and not ("messages" in given or "input" in given):
        return _recipe_row(given)
    _check_keys(given)
    turns = _turns(given)
    sample: dict[str, Any] = {"metadata": _metadata(given)}
    if "preferred_completion" in given or "other_completion" in given:
        return _preference(given, turns, sample)
    if "feedback_key" in given:
        raise InvalidRequestError("'feedback_key' belongs to 'preferred_completion' and 'other_completion'")
    answer: Turn | None = None
    if "completion" in given:
        answer = ["assistant", _content(given["completion"], "completion")]
    elif len(turns) > 1 and turns[-1][0] == "assistant":
        answer = turns.pop()
    sample["prompt"] = turns
    scores = _scores(given.get("feedbacks", {}), "feedbacks")
    if answer is None:
        if scores:
            raise InvalidRequestError("'feedbacks' need an answer that they are about: give 'completion'")
        return Row(PROMPT, sample)
    sample["completion"] = answer
    if not scores:
        return Row(COMPLETION, sample)
    sample["metrics"] = {key: float(value) for key, value in scores.items()}
    return Row(SCORE, sample, scores)


def _recipe_row(given: dict[str, Any]) -> Row:
    """A row as recipes read and write it, in the form that its keys stand for: none of them is lost unseen."""
    form = next((form for key, form in _RECIPE_FORMS.items() if key in given), DatasetPromptSample)
    parsed = parse_sample(given, (form,))
    kind = _SAMPLE_KINDS[type(parsed)]
    sample = parsed.model_dump(mode="json", exclude_none=True)
    sample["prompt"] = [_recipe_turn(turn, f"prompt[{at}]") for at, turn in enumerate(sample["prompt"])]
    if not sample["prompt"]:
        raise InvalidRequestError("'prompt' is empty; it needs at least one turn")
    for name in ("completion", "good_completion", "bad_completion"):
        if name in sample:
            sample[name] = _recipe_turn(sample[name], name)
    scores = _scores(given.get("metrics", {}), "metrics") if kind == SCORE else {}
    if kind == SCORE:
        sample["metrics"] = {key: float(value) for key, value in scores.items()}
    if not isinstance(parsed, DatasetPreferenceSample):
        return Row(kind, sample, scores)
    return Row(kind, sample, comparison=checked_key(parsed.metric, "metric") if parsed.metric else None)


def _recipe_turn(turn: Turn, where: str) -> Turn:
    return [turn[0], _content(turn[1], where)]


def _preference(given: Mapping[str, Any], turns: list[Turn], sample: dict[str, Any]) -> Row:
    for name in ("completion", "feedbacks"):
        if name in given:
            raise InvalidRequestError(f"a row with 'preferred_completion' has no {name!r}; leave it out")
    for name in ("preferred_completion", "other_completion"):
        if name not in given:
            raise InvalidRequestError(f"{name!r} is missing; a preference has two answers")
    sample["prompt"] = turns
    sample["good_completion"] = ["assistant", _content(given["preferred_completion"], "preferred_completion")]
    sample["bad_completion"] = ["assistant", _content(given["other_completion"], "other_completion")]
    metric = given.get("feedback_key")
    if metric is not None:
        sample["metric"] = checked_key(_text(metric, "feedback_key"), "feedback_key")
    return Row(PREFERENCE, sample, comparison=metric)


def _check_keys(given: Mapping[str, Any]) -> None:
    """Keys of one's own are kept in the original and mean nothing; a misspelt one would be lost unseen."""
    for key in given:
        if key not in _KEYS and (close := difflib.get_close_matches(key, _KEYS, 1, _NEARLY)):
            raise InvalidRequestError(f"unknown key {key!r:.80}; did you mean {close[0]!r}?")


def _turns(given: Mapping[str, Any]) -> list[Turn]:
    if "messages" in given and "input" in given:
        raise InvalidRequestError("the row has both 'messages' and 'input', which are the same; give one of them")
    name = "messages" if "messages" in given else "input"
    messages = given.get(name)
    if messages is None:
        raise InvalidRequestError(
            f"'messages' is missing; a row is written {_EXAMPLE}, got the keys {_shown([*given])}"
        )
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError(f"{name} must be a list of at least one message, got {_shown(messages)}")
    return [_turn(message, f"{name}[{at}]") for at, message in enumerate(messages)]


def _turn(message: object, where: str) -> Turn:
    if not isinstance(message, dict):
        raise InvalidRequestError(f"{where} must be {{'role': ..., 'content': ...}}, got {_shown(message)}")
    if message.get("tool_calls"):
        raise InvalidRequestError(f"{where}.tool_calls: write each as a part of the type 'function_call' in 'content'")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequestError(f"{where}.role must be a text such as 'user' or 'assistant', got {_shown(role)}")
    return [role, _content(message.get("content"), f"{where}.content")]


def _content(content: object, where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidRequestError(f"{where} must be a text or a list of parts, got {_shown(content)}")
    return [_part(part, f"{where}[{at}]") for at, part in enumerate(content)]


def _part(part: object, where: str) -> dict[str, Any]:
    if isinstance(part, dict) and part.get("type") == "image":
        return {"type": "image", "url": _image(part.get("url"), f"{where}.url")}
    try:
        return dict(fragments.to_dict(fragments.from_dataset(part)))
    except (InvalidRequestError, TypeError, ValueError) as error:
        raise InvalidRequestError(f"{where}: {error}, got {_shown(part)}") from error


def _image(url: object, where: str) -> str:
    found = _DATA_URI.match(url) if isinstance(url, str) else None
    if found is None or not isinstance(url, str):
        raise InvalidRequestError(
            f"{where} must be 'data:image/KIND;base64,...' with jpeg, png, webp or gif as KIND, got {_shown(url)}; "
            "images at other addresses are not fetched"
        )
    if (len(url) - found.end()) // 4 * 3 > MAX_IMAGE_BYTES + 3:
        raise InvalidRequestError(f"{where}: the image exceeds {MAX_IMAGE_BYTES} bytes; make it smaller")
    try:
        image = binascii.a2b_base64(url[found.end() :], strict_mode=True)
    except ValueError as error:
        raise InvalidRequestError(f"{where}: what follows ';base64,' is not base64: {error}") from error
    if len(image) > MAX_IMAGE_BYTES:
        raise InvalidRequestError(f"{where}: the image has {len(image)} bytes, more than {MAX_IMAGE_BYTES}")
    if not _is_image(image, found.group(1)):
        raise InvalidRequestError(f"{where}: the bytes are no {found.group(1)}; they begin with {image[:8]!r}")
    return url


def _is_image(image: bytes, kind: str) -> bool:
    if kind == "webp":
        return image[:4] == b"RIFF" and image[8:12] == b"WEBP"
    return image.startswith(_SIGNATURES[kind])


def _scores(feedbacks: object, name: str) -> dict[str, bool | float]:
    if not isinstance(feedbacks, dict):
        raise InvalidRequestError(f"{name} must be an object of keys and values, got {_shown(feedbacks)}")
    return {
        checked_key(key, f"{name}.{key}"): _score(value, f"{name}.{key:.80}")
        for key, value in feedbacks.items()
        if value is not None
    }


def _score(value: object, where: str) -> bool | float:
    if isinstance(value, bool):
        return value
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidRequestError(f"{where} must be a finite number, true or false, got {_shown(value)}")
    return number


def _metadata(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the row says of itself, under the names that recipes know."""
    metadata: dict[str, Any] = {}
    own = given.get("metadata")
    if own is not None:
        if not isinstance(own, dict):
            raise InvalidRequestError(f"metadata must be an object, got {_shown(own)}")
        metadata["external_data"] = own
    labels = given.get("labels")
    if labels is not None:
        if not isinstance(labels, dict):
            raise InvalidRequestError(f"labels must be an object of texts, got {_shown(labels)}")
        metadata["labels"] = {key: _text(value, f"labels.{key:.80}") for key, value in labels.items()}
    return metadata


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{where} must be a text, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value) if not isinstance(value, str) else repr(value[:80])
    return text if len(text) <= 80 else f"{text[:77]}..."
