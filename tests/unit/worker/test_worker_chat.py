"""OpenAI's messages to what templates read."""

import pytest

from harmonia.errors import InvalidRequestError
from harmonia.protocol.messages import ChatPrompt
from harmonia.worker.chat import template_args, template_messages, template_tools


def messages(*items: dict) -> list[dict]:
    return template_messages(ChatPrompt(messages=items))


def test_parts_are_joined_and_roles_translated() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages({"role": "developer", "content": parts}) == [{"role": "system", "content": "ab"}]


def test_arguments_of_calls_become_objects() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    (message,) = messages({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message["content"] == ""
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert call["function"]["arguments"] == '{"x": 1}'  # the caller's own is untouched


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "robot", "content": "x"}, r"messages\[0\].role must be one of .*'robot'"),
        ({"content": "x"}, "role"),
        ({"role": "user"}, r"messages\[0\].content must be a string"),
        ({"role": "user", "content": 3}, "got int"),
        ({"role": "user", "content": [{"type": "text"}]}, r"content\[0\] must look like"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "images are not supported by this"),
        ({"role": "user", "content": [{"type": ["x"]}]}, "must look like"),
        ({"role": "user", "content": ["x"]}, "must look like"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, r"tool_calls\[0\].function must have a name"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "must be JSON text"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 9999}}]}, "JSON text"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "JSON object"),
        ({"role": "assistant", "tool_calls": 7}, "must have a name"),
    ],
)
def test_bad_messages_are_named(message: dict, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        messages(message)
    assert "field" in caught.value.details


def test_no_messages_bad_tools_and_reserved_arguments_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at least one"):
        messages()
    with pytest.raises(InvalidRequestError, match=r"tools\[0\] must look like"):
        template_tools(ChatPrompt(messages=(), tools=({"type": "function"},)))
    with pytest.raises(InvalidRequestError, match="`messages`"):
        template_args(ChatPrompt(messages=(), template_args={"messages": []}))
    assert template_tools(ChatPrompt(messages=())) is None
