"""Answers as pydantic objects: the schema of a request, its picture for a prompt, the way back from text."""

from harmonia.client.structured.asking import Generates, JsonParseError, generate_and_validate
from harmonia.client.structured.parsing import OutputParserException, pydantic_parse, remove_reasoning
from harmonia.client.structured.schemas import (
    get_pydantic_schema,
    get_simple_pydantic_schema,
    render_pydantic_model,
    render_schema,
)

__all__ = [
    "Generates",
    "JsonParseError",
    "OutputParserException",
    "generate_and_validate",
    "get_pydantic_schema",
    "get_simple_pydantic_schema",
    "pydantic_parse",
    "remove_reasoning",
    "render_pydantic_model",
    "render_schema",
]
