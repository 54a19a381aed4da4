"""Fragments of a turn as callers write and read them: dicts with a `type` and strings.

`{"type": "text", "text": ...}`, `reasoning` with `text`, `function_call` with `call_id`, `name` and `arguments`,
`tool_response` with `content` and perhaps `call_id`, `structured_output` with `raw_text`, `parsed_json` and `schema`.
Data sets may write `value` for the `text` of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from harmonia.errors import InvalidRequestError
from harmonia.protocol.threads import Fragment, FunctionCall, Reasoning, StructuredOutput, Text, ToolResponse

_KINDS: Mapping[str, type[Fragment]] = {
    "text": Text,
    "reasoning": Reasoning,
    "function_call": FunctionCall,
    "tool_response": ToolResponse,
    "structured_output": StructuredOutput,
}
_NAMES = {cls: kind for kind, cls in _KINDS.items()}
_REQUIRED = {cls: [field.name for field in msgspec.structs.fields(cls) if field.required] for cls in _NAMES}


def image_error() -> InvalidRequestError:
    """What every door says to an image; an image becomes one more fragment the day that models see."""
    return InvalidRequestError("images in prompts are not supported yet; leave the image out or describe it in text")


def string(value: object, what: str) -> str:
    """The value as a plain string; TypeError for other types, UnicodeEncodeError for halves of surrogate pairs."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be str, not {type(value).__name__}")
    if not value.isascii():
        value.encode()
    return str.__str__(value)


def to_dict(fragment: Fragment) -> dict[str, str]:
    """A fragment as a fresh dict; a `call_id` of None is left out."""
    fields = {name: getattr(fragment, name) for name in fragment.__struct_fields__}
    return {"type": _NAMES[type(fragment)]} | {name: value for name, value in fields.items() if value is not None}


def from_dict(raw: object) -> Fragment:
    """A fragment out of a dict of strings; further keys are ignored.

    TypeError for anything but a dict of strings, InvalidRequestError for an unknown type or a missing key.
    """
    if not isinstance(raw, dict):
        raise TypeError(f"a fragment must be a dict of strings, not {type(raw).__name__}")
    return _build({string(key, "a key of a fragment"): string(raw[key], f"fragment[{key!r}]") for key in raw})


def from_dataset(raw: object) -> Fragment:
    """A fragment out of a row of a data set, where keys may be None and `value` may stand for `text`.

    TypeError and InvalidRequestError as `from_dict`.
    """
    if not isinstance(raw, dict):
        raise TypeError(f"a fragment must be a dict, not {type(raw).__name__}")
    given = {key: value for key, value in raw.items() if value is not None}
    if given.get("type") == "text" and "value" in given:
        if "text" in given:
            raise InvalidRequestError("a text fragment has both 'text' and 'value'; give one of them")
        given["text"] = given.pop("value")
    return _build(given)


def _build(raw: dict[str, object]) -> Fragment:
    kind = raw.get("type")
    if kind == "image":
        raise image_error()
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise InvalidRequestError(f"unknown fragment type {kind!r}; give 'type' as one of {', '.join(_KINDS)}")
    missing = [name for name in _REQUIRED[cls] if name not in raw]
    if missing:
        raise InvalidRequestError(f"a {kind} fragment needs {', '.join(map(repr, missing))}")
    names = (name for name in cls.__struct_fields__ if name in raw)
    return cls(**{name: string(raw[name], f"fragment[{name!r}]") for name in names})


def visible_parts(content: Sequence[Fragment]) -> Iterator[str]:
    """What a reader of the conversation sees: texts and structured output, in order."""
    for fragment in content:
        match fragment:
            case Text():
                yield fragment.text
            case StructuredOutput():
                yield fragment.parsed_json


def answer(content: Sequence[Fragment]) -> str:
    """The JSON of the last structured output, or else all texts without separator."""
    structured = [f.parsed_json for f in content if isinstance(f, StructuredOutput)]
    return structured[-1] if structured else "".join(f.text for f in content if isinstance(f, Text))
