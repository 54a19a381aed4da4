"""Tools of a chat request: what the template shows, and how a forced call is made.

`auto` leaves it to the model and the worker's parser. `required` and a named function instead constrain the answer to
JSON that is a call, whatever format the model was trained on; `ForcedCalls` turns that JSON into a tool call.
"""

from __future__ import annotations

import json
import uuid

import msgspec

from harmonia.errors import InvalidRequestError
from harmonia.protocol.messages import Constraint, Delta, JsonObject, ToolCall
from harmonia.server.rest.schemas.chat import ChatRequest, FunctionDefinition, NamedToolChoice, Tool


class ToolPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's tools mean for the worker."""

    tools: tuple[JsonObject, ...] = ()
    """Shown to the model."""
    parse: bool = False
    """Look for calls in the answer."""
    constraint: Constraint | None = None
    """Makes the answer a call."""
    forced: ForcedCalls | None = None
    """Reads that answer."""


class ForcedCalls:
    """Turns answers that were constrained to be a call into tool calls."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._texts: dict[tuple[str, int], str] = {}

    def apply(self, delta: Delta) -> Delta:
        """The delta without its text, and on the last one of an answer with the call."""
        text = self._texts.pop((delta.id, delta.index), "") + delta.text
        if delta.finish_reason is None:
            self._texts[delta.id, delta.index] = text
            return msgspec.structs.replace(delta, text="")
        call = self._parse(text)
        if call is None:
            # Cut off by max_tokens: the caller gets what there is, and the reason.
            return msgspec.structs.replace(delta, text=text)
        # OpenAI says `stop` when the caller named the function, `tool_calls` when the model chose it.
        reason = "stop" if self._name is not None else "tool_calls"
        return msgspec.structs.replace(delta, text="", tool_calls=(call,), finish_reason=reason)

    def _parse(self, text: str) -> ToolCall | None:
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if self._name is not None:
            name, arguments = self._name, text.strip()
        elif isinstance(value, dict) and "name" in value:
            name, arguments = str(value["name"]), json.dumps(value.get("arguments", {}), ensure_ascii=False)
        else:
            return None
        return ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", name=name, arguments=arguments)


def plan_tools(request: ChatRequest) -> ToolPlan:
    """Check a request's tools and say how to carry them out."""
    functions = [function for index, tool in enumerate(request.tools or ()) if (function := _function(index, tool))]
    choice = request.tool_choice
    if not functions:
        if choice not in (None, "none", "auto"):
            raise InvalidRequestError("tool_choice: the request brings no function to call", field="tool_choice")
        return ToolPlan()
    if choice == "none":
        return ToolPlan()
    shown = tuple(_shown(function) for function in functions)
    if choice in (None, "auto"):
        return ToolPlan(tools=shown, parse=True)
    if isinstance(choice, NamedToolChoice):
        function = _named(functions, choice.function.name)
        constraint = Constraint(kind="json_schema", source=json.dumps(_arguments(function)))
        return ToolPlan(tools=shown, constraint=constraint, forced=ForcedCalls(function.name))
    constraint = Constraint(kind="json_schema", source=json.dumps(_any_call(functions)))
    return ToolPlan(tools=shown, constraint=constraint, forced=ForcedCalls(None))


def _function(index: int, tool: Tool) -> FunctionDefinition | None:
    if tool.function is not None:
        return tool.function
    if tool.id is None or tool.enabled is None:
        message = f"tools[{index}]: give 'type' and 'function', or 'id' and 'enabled'"
        raise InvalidRequestError(message, field=f"tools[{index}]")
    if tool.enabled:
        message = f"tools[{index}].id: no tool {tool.id!r} is registered on this server"
        raise InvalidRequestError(message, field=f"tools[{index}].id")
    return None


def _named(functions: list[FunctionDefinition], name: str) -> FunctionDefinition:
    for function in functions:
        if function.name == name:
            return function
    raise InvalidRequestError(f"tool_choice: {name!r} is not among the tools", field="tool_choice")


def _shown(function: FunctionDefinition) -> JsonObject:
    shown: JsonObject = {"name": function.name, "parameters": _parameters(function)}
    if function.description is not None:
        shown["description"] = function.description
    return {"type": "function", "function": shown}


def _parameters(function: FunctionDefinition) -> JsonObject:
    return function.parameters or {"type": "object", "properties": {}}


def _arguments(function: FunctionDefinition) -> JsonObject:
    """The schema of a forced call's arguments; OpenAI: without parameters there are none."""
    return function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def _any_call(functions: list[FunctionDefinition]) -> JsonObject:
    definitions: JsonObject = {}
    calls = []
    for function in functions:
        parameters = dict(_arguments(function))
        # References count from the root of the whole schema, so definitions move there.
        for name, schema in parameters.pop("$defs", {}).items():
            if definitions.setdefault(name, schema) != schema:
                raise InvalidRequestError(f"tools: two functions define {name!r} in $defs differently", field="tools")
        properties = {"name": {"const": function.name}, "arguments": parameters}
        call = {"type": "object", "properties": properties, "required": ["name", "arguments"]}
        calls.append({**call, "additionalProperties": False})
    return {"anyOf": calls, **({"$defs": definitions} if definitions else {})}
