"""From the text of a model to a pydantic object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harmonia.client.structured.repair import json_texts
from harmonia.errors import HarmoniaError

T = TypeVar("T", bound=BaseModel)

_OPENED, _CLOSED = "<think>", "</think>"


class OutputParserException(HarmoniaError):
    """A text holds nothing that the expected model accepts; `llm_output` is that text."""

    def __init__(self, message: str, llm_output: str | None = None) -> None:
        super().__init__(message, llm_output=llm_output)
        self.llm_output = llm_output


def remove_reasoning(completion: str) -> str:
    """What was said aloud: without `<think>` blocks, also one that the prompt opened or that never ended."""
    return _without_blocks(completion).strip()


def pydantic_parse(text: str, pydantic_object: type[T]) -> T:
    """The object that an answer holds, past `<think>` blocks, prose, markdown fences and a missing end.

    An answer that was cut short is closed where it ends: a text that was begun is kept, a number that may go on is
    not. OutputParserException if nothing in it fits.
    """
    first_error: ValidationError | None = None
    for candidate in _candidates(text):
        try:
            return pydantic_object.model_validate_json(candidate)
        except ValidationError as error:
            first_error = first_error or error
    name = pydantic_object.__name__
    if first_error is None:
        raise OutputParserException(f"the answer holds no JSON for {name}: {_excerpt(text)}", text)
    problems = "; ".join(_problem(error) for error in first_error.errors(include_url=False, include_context=False))
    raise OutputParserException(f"the answer does not fit {name}: {problems}. It was {_excerpt(text)}", text)


def _candidates(text: str) -> Iterator[str]:
    # Blocks come before the answer; a tag behind the first brace stands in what the JSON quotes.
    for version in dict.fromkeys([_without_blocks(text, up_to="{"), text]):
        yield from json_texts(version)


def _without_blocks(text: str, up_to: str | None = None) -> str:
    if _CLOSED in text.partition(_OPENED)[0]:
        text = text.partition(_CLOSED)[2]
    while _OPENED in (text.partition(up_to)[0] if up_to else text):
        before, _, block = text.partition(_OPENED)
        text = before + block.partition(_CLOSED)[2]
    return text


def _problem(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    return f"{where}: {error['msg']}" if where else str(error["msg"])


def _excerpt(text: str, limit: int = 300) -> str:
    return repr(text) if len(text) <= limit else f"{text[:limit]!r} and {len(text) - limit} characters more"
