"""OpenAI's chat messages to what chat templates read, and to tokens."""

from __future__ import annotations

import json
from typing import Any

from harmonia.errors import InvalidRequestError
from harmonia.protocol.messages import ChatPrompt, JsonObject

_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
_RESERVED = {"messages", "tools", "add_generation_prompt"}
_MEDIA = {"image_url": "images", "image": "images", "input_audio": "audio", "file": "files", "video_url": "videos"}


def template_messages(prompt: ChatPrompt) -> list[JsonObject]:
    """The messages as templates want them: content as text, arguments of tool calls as objects."""
    if not prompt.messages:
        raise InvalidRequestError("messages must hold at least one message", field="messages")
    return [_message(message, f"messages[{place}]") for place, message in enumerate(prompt.messages)]


def template_tools(prompt: ChatPrompt) -> list[JsonObject] | None:
    """The tools in OpenAI's shape, checked; None when there are none, which is what templates test for."""
    for place, tool in enumerate(prompt.tools):
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            wanted = '{"type": "function", "function": {"name": ...}}'
            raise InvalidRequestError(f"tools[{place}] must look like {wanted}", field=f"tools[{place}]")
    return list(prompt.tools) or None


def template_args(prompt: ChatPrompt) -> JsonObject:
    """The caller's own variables for the template."""
    taken = _RESERVED & prompt.template_args.keys()
    if taken:
        name = min(taken)
        raise InvalidRequestError(f"template arguments may not replace `{name}`", field="chat_template_kwargs")
    return prompt.template_args


def _message(message: JsonObject, where: str) -> JsonObject:
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequestError(f"{where}.role must be one of {sorted(_ROLES)}, got {role!r}", field=f"{where}.role")
    calls = message.get("tool_calls")
    result = {key: value for key, value in message.items() if value is not None and key != "content"}
    result["role"] = "system" if role == "developer" else role
    result["content"] = _content(message.get("content"), where, required=role != "assistant")
    if calls:
        result["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(_list(calls))]
    return result


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _content(content: object, where: str, *, required: bool) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part, f"{where}.content[{place}]") for place, part in enumerate(content))
    if content is None and not required:
        return ""
    message = f"{where}.content must be a string or a list of parts, got {type(content).__name__}"
    raise InvalidRequestError(message, field=f"{where}.content")


def _part(part: object, where: str) -> str:
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return str(part[kind])
    if isinstance(kind, str) and kind in _MEDIA:
        raise InvalidRequestError(f"{where}: {_MEDIA[kind]} are not supported by this model", field=where)
    raise InvalidRequestError(f'{where} must look like {{"type": "text", "text": ...}}', field=where)


def _tool_call(call: object, where: str) -> JsonObject:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(f"{where}.function must have a name and arguments", field=where)
    arguments = _arguments(function.get("arguments"), f"{where}.function.arguments")
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _arguments(arguments: object, where: str) -> JsonObject:
    try:
        value = json.loads(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{where} must be JSON text: {error}", field=where) from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{where} must be a JSON object, got {type(value).__name__}", field=where)
    return value
