"""Tool calls out of text that looks like what models write, cut at every position."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonia.worker.calls import Functions
from harmonia.worker.toolforms import GEMMA, GENERIC, HERMES, LLAMA, MISTRAL, Form, forms_for
from harmonia.worker.tools import ToolParser

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
)
PARIS = ("get_weather", {"city": "Paris"})

GOOD = [
    (HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', "", [PARIS]),
    (
        HERMES,
        'Let me look.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "Let me look.\n",
        [("now", {}), PARIS],
    ),
    (HERMES, '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}', "", [PARIS]),  # never closed
    (HERMES, '\n\n<tool_call>{"name": "now"}</tool_call>\n\nDone.', "Done.", [("now", {})]),
    (
        HERMES,  # Qwen3-Coder
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nNew\nYork\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>",
        "",
        [("get_weather", {"city": "New\nYork", "days": 3})],
    ),
    (LLAMA, '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    (LLAMA, '\n{"name": "now", "parameters": {}}; {"name": "get_weather", "parameters": {"city": "Paris"}}',
     "", [("now", {}), PARIS]),
    (LLAMA, '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    (LLAMA, '<|python_tag|>get_weather.call(city="Paris")', "", [("get_weather.call", {"city": "Paris"})]),
    (LLAMA, 'Sure: <function=get_weather>{"city": "Paris"}</function>', "Sure: ", [PARIS]),
    ((MISTRAL,), '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]', "", [PARIS]),
    ((MISTRAL,), '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "get_weather", "arguments": '
     '"{\\"city\\": \\"Paris\\"}"}]', "", [("now", {}), PARIS]),
    ((MISTRAL,), 'Hm. [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[CALL_ID]x1[ARGS]{}',
     "Hm. ", [PARIS, ("now", {})]),
    (GEMMA, '```tool_code\nget_weather(city="Paris")\n```', "", [PARIS]),
    (GEMMA, 'I call it.\n```tool_code\nprint(get_weather("Paris", days=2))\nnow()\n```', "I call it.\n",
     [("get_weather", {"city": "Paris", "days": 2}), ("now", {})]),
    (GEMMA, "[get_weather(city='Paris')]", "", [PARIS]),
    (GEMMA, '```json\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n```\n', "", [PARIS]),
    (GENERIC, 'Ok <tool_call>{"name": "get_weather", "arguments": {"city": "a ] } \\" b"}}</tool_call>', "Ok ",
     [("get_weather", {"city": 'a ] } " b'})]),
]  # fmt: skip

NOT_CALLS = [
    (HERMES, "Nothing to call here, 1 < 2 and <tool is not a tag."),
    (HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": \n</tool_call> and on'),
    (HERMES, "<tool_call>[]</tool_call>"),
    (HERMES, '<tool_call>{"name": 3}</tool_call>'),
    (HERMES, "<tool_call>"),
    (HERMES, "  \n"),
    (LLAMA, '{"name": "unknown_function", "parameters": {}}'),
    (LLAMA, '{"answer": [1, 2, {"x": "}"}]} is all'),
    (LLAMA, "<|python_tag|>import os\nprint(1 + 1)"),
    (LLAMA, "<function=get_weather>{broken}</function>"),
    ((MISTRAL,), "[TOOL_CALLS] I shall not call"),
    ((MISTRAL,), "[TOOL_CALLS]" + "word " * 100),
    ((MISTRAL,), "[TOOL_CALLS][1, 2]"),
    (GEMMA, '```json\n{"name": "Ada", "age": 36}\n```\nThat is she.'),
    (GEMMA, "```python\nget_weather('Paris')\n```"),
    (GEMMA, "```tool_code\nimport os\n```"),
    (GEMMA, "[get_weather(city=x)]"),
    (GENERIC, "{" * 5000),
    (GENERIC, "[" * 5000),
    (GENERIC, "   \n<tool_call>{</tool_call>"),
]


def parse(forms: tuple[Form, ...], pieces: list[str]) -> tuple[str, list[tuple[str, object]]]:
    """Text and calls of an answer that arrives in pieces."""
    parser = ToolParser(forms, Functions(TOOLS))
    text = "".join([parser.push(piece) for piece in pieces] + [parser.flush()])
    return text, [(call.name, json.loads(call.arguments)) for call in parser.take_calls()]


@pytest.mark.parametrize(("forms", "answer", "text", "calls"), GOOD)
def test_calls_are_found_however_the_text_is_cut(forms, answer, text, calls) -> None:
    assert parse(forms, [answer]) == (text, calls)
    assert parse(forms, list(answer)) == (text, calls)
    for cut in range(1, len(answer)):
        assert parse(forms, [answer[:cut], answer[cut:]]) == (text, calls)


@pytest.mark.parametrize(("forms", "answer"), NOT_CALLS)
def test_what_is_no_call_stays_text(forms, answer) -> None:
    assert parse(forms, list(answer)) == (answer, [])
    for cut in range(1, min(len(answer), 200)):
        assert parse(forms, [answer[:cut], answer[cut:]]) == (answer, [])


SCRAPS = ["<tool_call>", "</tool_call>", '{"name": "x', "[TOOL_CALLS]", " ", "{", "a", "```json\n", "[", '"']


@given(st.lists(st.sampled_from(SCRAPS)))
def test_text_is_never_lost(pieces: list[str]) -> None:
    text, calls = parse(GENERIC, pieces)
    assert text == "".join(pieces)
    assert calls == []


def test_text_streams_before_a_marker() -> None:
    parser = ToolParser(HERMES, Functions(TOOLS))
    assert parser.push("Hello ") == "Hello "
    assert parser.push("wor<tool") == "wor"
    assert parser.push(" x") == "<tool x"


def test_ids_are_distinct_and_fit_the_family() -> None:
    parser = ToolParser((MISTRAL,), Functions(TOOLS))
    parser.push('[TOOL_CALLS][{"name": "now"}, {"name": "now"}]')
    first, second = parser.take_calls()
    assert first.id != second.id
    assert len(first.id) == 9 and first.id.isalnum()


@pytest.mark.parametrize(
    ("family", "template", "forms"),
    [
        ("llama", "..<tool_call>..", HERMES),
        ("llama", "..<|python_tag|>..", LLAMA),
        ("llama", "{{ messages }}", GENERIC),
        ("qwen2", None, HERMES),
        ("mistral", "[AVAILABLE_TOOLS]..[TOOL_CALLS]", (MISTRAL,)),
        ("gemma3", "<start_of_turn>", GEMMA),
    ],
)
def test_forms_follow_template_then_family(family, template, forms) -> None:
    assert forms_for(family, template) == forms
