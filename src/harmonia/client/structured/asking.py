"""Asking until the answer can be read."""

from __future__ import annotations

from typing import Protocol, TypeVar

from pydantic import BaseModel

from harmonia.client.structured.parsing import OutputParserException, pydantic_parse
from harmonia.client.structured.schemas import render_schema
from harmonia.errors import HarmoniaError
from harmonia.threads import StringThread

T = TypeVar("T", bound=BaseModel)


class JsonParseError(HarmoniaError):
    """A model did not give what was asked for, after all retries; `completion` is its last answer."""

    code = "unreadable_answer"

    def __init__(self, message: str, completion: str) -> None:
        super().__init__(message, completion=completion)
        self.completion = completion


class Generates(Protocol):
    """Whatever answers a conversation with that conversation and one more turn."""

    async def generate(self, thread: StringThread) -> StringThread:
        """Answer."""


async def generate_and_validate(
    model: Generates, thread: StringThread, pydantic_model: type[T], max_parsing_retries: int = 1
) -> tuple[str, T]:
    """Ask until the answer parses: its text, and the object in it. Each retry shows the model what was wrong.

    The prompt says what is wanted (`render_schema`). JsonParseError after `max_parsing_retries` more attempts.
    """
    form = render_schema(pydantic_model)
    attempts = 0
    while True:
        answered = await model.generate(thread)
        attempts += 1
        completion = answered.last_content()
        try:
            return completion, pydantic_parse(completion, pydantic_model)
        except OutputParserException as error:
            if attempts > max_parsing_retries:
                raise JsonParseError(f"{error.message} (attempt {attempts}, the last)", completion) from error
            thread = answered.user(f"That cannot be read: {error.message}\nAnswer again, with JSON only:\n{form}")
