"""How each family of models marks a tool call in its text: where it begins, where it ends, how to read it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from harmonia.worker.calls import Call, Functions, json_calls, named_json_call, python_calls, xml_calls

MAX_PREFIX_CHARS = 256

Read = Callable[[str, Functions], list[Call] | None]


class Ending:
    """Finds the end of one call in a text that grows."""

    def find(self, text: str) -> int | None:
        """Where the call ends in the text after its marker; None while it is not there yet."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a call."""

    marker: str
    """What begins it."""
    ending: Callable[[], Ending]
    """What finds its end, one for each call."""
    read: Read
    """The calls in the text between marker and end; None if it is none."""
    at_start: bool = False
    """Only where nothing but calls came before."""
    keep_marker: bool = False
    """The marker is itself part of the call."""


class AtTag(Ending):
    """A call ends with a tag."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._from = 0

    def find(self, text: str) -> int | None:
        """The place after the tag."""
        at = text.find(self._tag, self._from)
        self._from = max(0, len(text) - len(self._tag) + 1)
        return at + len(self._tag) if at >= 0 else None


class AtClose(Ending):
    """A call ends where its first bracket closes; strings in double or single quotes are passed over."""

    _next = re.compile(r"[\\\"'\[\]{}]")

    def __init__(self) -> None:
        self._from = 0
        self._depth = 0
        self._quote = ""

    def find(self, text: str) -> int | None:
        """The place after the closing bracket."""
        while found := self._next.search(text, self._from):
            self._from = found.end()
            if self._closes(found[0]):
                return self._from
        self._from = max(self._from, len(text))
        return None

    def _closes(self, char: str) -> bool:
        if char == "\\":
            self._from += 1
        elif self._quote:
            self._quote = "" if char == self._quote else self._quote
        elif char in "\"'":
            self._quote = char if self._depth else ""
        else:
            self._depth += 1 if char in "[{" else -1
            return self._depth <= 0
        return False


class AtMistralEnd(Ending):
    """`[TOOL_CALLS]` is followed by an array, or by a name, perhaps `[CALL_ID]..` and `[ARGS]`, and an object."""

    _head = re.compile(r"\s*(?:(?=\[\s*[{\]])|[^\s\[{]+(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\])?\s*(?=\{))")

    def __init__(self) -> None:
        self._body: AtClose | None = None
        self._start = 0

    def find(self, text: str) -> int | None:
        """The place after the array or object; the end of the text when it cannot become one."""
        if self._body is None:
            head = self._head.match(text)
            if head is None:
                return len(text) if len(text) > MAX_PREFIX_CHARS else None
            self._body, self._start = AtClose(), head.end()
        end = self._body.find(text[self._start :])
        return None if end is None else self._start + end


class AtEnd(Ending):
    """A call goes on to the end of the answer."""

    def find(self, text: str) -> int | None:
        """Never before the end."""
        return None


def _read_json(text: str, functions: Functions) -> list[Call] | None:
    return json_calls(text)


def _read_known_json(text: str, functions: Functions) -> list[Call] | None:
    return functions.all_known(json_calls(text))


def _read_known(text: str, functions: Functions) -> list[Call] | None:
    return functions.all_known(json_calls(text) or python_calls(text, functions))


def _read_tagged(text: str, functions: Functions) -> list[Call] | None:
    body = text.removesuffix("</tool_call>")
    return json_calls(body) or xml_calls(body, functions)


def _read_function_tag(text: str, functions: Functions) -> list[Call] | None:
    return xml_calls(f"<function={text}", functions)


def _read_python_tag(text: str, functions: Functions) -> list[Call] | None:
    return json_calls(text) or python_calls(text, functions)


def _read_fence(text: str, functions: Functions) -> list[Call] | None:
    return _read_known(text.removesuffix("```"), functions)


def _read_mistral(text: str, functions: Functions) -> list[Call] | None:
    if text.lstrip().startswith("["):
        return json_calls(text)
    brace = text.find("{")
    name = re.split(r"\[(?:CALL_ID|ARGS)\]", text[:brace])[0]
    return named_json_call(name, text[brace:]) if brace > 0 else None


TAGGED = Form("<tool_call>", lambda: AtTag("</tool_call>"), _read_tagged)
FUNCTION_TAG = Form("<function=", lambda: AtTag("</function>"), _read_function_tag)
PYTHON_TAG = Form("<|python_tag|>", AtEnd, _read_python_tag)
MISTRAL = Form("[TOOL_CALLS]", AtMistralEnd, _read_mistral)
BARE_OBJECT = Form("{", AtClose, _read_known_json, at_start=True, keep_marker=True)
BARE_LIST = Form("[", AtClose, _read_known, at_start=True, keep_marker=True)
FENCES = tuple(Form(f"```{name}\n", lambda: AtTag("```"), _read_fence) for name in ("tool_code", "tool_call", "json"))

HERMES = (TAGGED,)
LLAMA = (PYTHON_TAG, FUNCTION_TAG, BARE_OBJECT)
GEMMA = (*FENCES, BARE_OBJECT, BARE_LIST)
GENERIC = (TAGGED, PYTHON_TAG, FUNCTION_TAG, MISTRAL, *FENCES, BARE_OBJECT, BARE_LIST)

# The end tags and inner tags that tokenizers keep as special tokens too.
TAGS = ("</tool_call>", "[ARGS]", "[CALL_ID]", "</function>")

_BY_TEMPLATE = (
    ("<tool_call>", HERMES),
    ("[TOOL_CALLS]", (MISTRAL,)),
    ("<|python_tag|>", LLAMA),
    ("tool_code", GEMMA),
)
_BY_FAMILY = {"qwen2": HERMES, "qwen3": HERMES, "qwen3_moe": HERMES, "mistral": (MISTRAL,), "gemma3": GEMMA}


def forms_for(family: str, template: str | None) -> tuple[Form, ...]:
    """The forms that a model uses: what its chat template mentions, else what its family does, else all of them."""
    for sign, forms in _BY_TEMPLATE:
        if template and sign in template:
            return forms
    if family == "llama" and template and '"parameters"' in template:
        return LLAMA
    return _BY_FAMILY.get(family, GENERIC)
