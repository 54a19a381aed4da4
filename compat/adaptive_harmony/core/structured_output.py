"""Answers that follow a pydantic model."""

from harmonia.client.structured import (
    JsonParseError,
    OutputParserException,
    generate_and_validate,
    get_pydantic_schema,
    get_simple_pydantic_schema,
    pydantic_parse,
    render_pydantic_model,
    render_schema,
)

__all__ = [
    "JsonParseError",
    "OutputParserException",
    "generate_and_validate",
    "get_pydantic_schema",
    "get_simple_pydantic_schema",
    "pydantic_parse",
    "render_pydantic_model",
    "render_schema",
]
