"""From the prompts and messages of requests to the protocol's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from harmonia.errors import InvalidRequestError
from harmonia.protocol.messages import JsonObject, Prompt, TextPrompt, TokenPrompt
from harmonia.server.rest.schemas.chat import ContentPart, Message, PastToolCall
from harmonia.server.rest.schemas.completions import PromptInput

MAX_PROMPTS = 2048


def parse_prompts(value: PromptInput, field: str) -> tuple[TextPrompt | TokenPrompt, ...]:
    """One prompt for a text or a list of token ids, several for a list of those."""
    if isinstance(value, str):
        return (TextPrompt(text=value),)
    if not value:
        raise InvalidRequestError(f"{field}: the list is empty", field=field)
    if all(isinstance(item, int) for item in value):
        return (_tokens(value, field),)
    if len(value) > MAX_PROMPTS:
        raise InvalidRequestError(f"{field}: at most {MAX_PROMPTS} prompts, got {len(value)}", field=field)
    return tuple(_one(item, f"{field}[{index}]") for index, item in enumerate(value))


def check_tokens(prompts: Iterable[Prompt], vocab_size: int, field: str) -> None:
    """Raise `InvalidRequestError` for a token id that the model does not have."""
    for prompt in prompts:
        if isinstance(prompt, TokenPrompt) and max(prompt.token_ids) >= vocab_size:
            message = f"{field}: token ids go from 0 to {vocab_size - 1}, got {max(prompt.token_ids)}"
            raise InvalidRequestError(message, field=field)


def _one(item: str | int | list[int], field: str) -> TextPrompt | TokenPrompt:
    if isinstance(item, str):
        return TextPrompt(text=item)
    if isinstance(item, int):
        raise InvalidRequestError(
            f"{field}: a list holds texts, token ids, or lists of token ids, not a mix", field=field
        )
    return _tokens(item, field)


def _tokens(ids: list[int] | list[str | int | list[int]], field: str) -> TokenPrompt:
    if not ids:
        raise InvalidRequestError(f"{field}: the list of token ids is empty", field=field)
    return TokenPrompt(token_ids=tuple(token for token in ids if isinstance(token, int)))


def chat_messages(messages: list[Message]) -> tuple[JsonObject, ...]:
    """Messages as chat templates expect them: text joined, only the fields that templates read."""
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def with_system_prompt(messages: Sequence[JsonObject], system_prompt: str | None) -> tuple[JsonObject, ...]:
    """A chat that begins with a system prompt. What the caller's own says follows it in the same message, since many
    templates know one only."""
    if system_prompt is None:
        return tuple(messages)
    content: str | list[JsonObject] = system_prompt
    rest = messages
    if messages[0]["role"] in ("system", "developer"):
        own, rest = messages[0]["content"], messages[1:]
        start = f"{system_prompt}\n\n" if own else system_prompt
        content = start + own if isinstance(own, str) else [{"type": "text", "text": start}, *own]
    return ({"role": "system", "content": content}, *rest)


def _message(message: Message, field: str) -> JsonObject:
    if message.content is None and message.role != "assistant":
        raise InvalidRequestError(f"{field}.content: a {message.role} message needs content", field=f"{field}.content")
    # Templates of open models know `system` only.
    role = "system" if message.role == "developer" else message.role
    shown: JsonObject = {"role": role, "content": _text(message.content, f"{field}.content")}
    extras = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
    }
    shown.update({name: value for name, value in extras.items() if value is not None})
    if message.tool_calls:
        shown["tool_calls"] = [_call(call) for call in message.tool_calls]
    return shown


def _text(content: str | list[ContentPart] | None, field: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part(part, f"{field}[{index}]") for index, part in enumerate(content))


def _part(part: ContentPart, field: str) -> str:
    text = {"text": part.text, "refusal": part.refusal}.get(part.type)
    if part.type not in ("text", "refusal"):
        message = f"{field}: this model reads text only, got a part of type {part.type!r}"
        raise InvalidRequestError(message, field=f"{field}.type")
    if text is None:
        raise InvalidRequestError(f"{field}.{part.type}: missing", field=f"{field}.{part.type}")
    return text


def _call(call: PastToolCall) -> JsonObject:
    arguments = call.function.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": text}}
