"""Tools that a model may call, as callers write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harmonia.errors import InvalidRequestError
from harmonia.protocol.base import JsonObject


@dataclass(frozen=True, eq=False)
class Tool:
    """A function that a model may call. parameters: the JSON schema of its arguments; None: it takes none."""

    name: str
    description: str
    parameters: Mapping[str, Any] | None

    def to_json(self) -> JsonObject:
        """As OpenAI's function object."""
        schema = {"type": "object", "properties": {}} if self.parameters is None else dict(self.parameters)
        function = {"name": self.name, "description": self.description, "parameters": schema}
        return {"type": "function", "function": function}


AnyTool = Tool | str | Mapping[str, Any]
"""Also OpenAI's `{"type": "function", "function": {...}}`, or its JSON text."""


def read_tools(tools: Sequence[AnyTool]) -> tuple[JsonObject, ...]:
    """The tools as JSON objects; InvalidRequestError for anything that is none."""
    if isinstance(tools, str):
        raise InvalidRequestError("tools must be a list, got one string", field="tools")
    return tuple(_read(tool) for tool in tools)


def _read(tool: AnyTool) -> JsonObject:
    if isinstance(tool, Tool):
        return tool.to_json()
    value: object = tool
    if isinstance(tool, str):
        try:
            value = json.loads(tool)
        except ValueError as error:
            raise InvalidRequestError(
                f"tool {tool[:80]!r} is not JSON; give OpenAI's function objects (tool servers are not supported yet)",
                field="tools",
            ) from error
    if not isinstance(value, Mapping) or value.get("type") != "function" or "function" not in value:
        raise InvalidRequestError(
            f'a tool is {{"type": "function", "function": {{...}}}}, got {str(value)[:80]}', field="tools"
        )
    return dict(value)
