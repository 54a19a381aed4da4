"""Chat templates render as transformers renders them, and fail as requests that can be mended."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from harmonia.errors import InvalidRequestError
from harmonia.models.chat_template import ChatTemplate

CHAT = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": "Zwölf?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"ä": [1, None]}}}]},
    {"role": "tool", "content": "12"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "ö", "parameters": {"b": 1, "a": 2}}}]
TEMPLATES = [
    """{%- for m in messages %}
    {{- bos_token if loop.first }}<{{ m.role }}>{{ m.content or '' }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}""",
    "{{ tools | tojson }}|{{ tools | tojson(indent=2) }}|{{ messages[2].tool_calls[0].function.arguments | tojson }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'tool' %}{% break %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ undefined_name }}{{ enable_thinking }}",
    "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}\n{% endfor %}",
    "{{ strftime_now('%Y') }}{{ documents is none }}{{ messages[0]['content'].split(' ')[-1].upper() }}",
]


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"bos_token": "<s>"})


@pytest.mark.parametrize("source", TEMPLATES)
def test_as_transformers(source):
    rendered = template(source).render(CHAT, tools=TOOLS, extra={"enable_thinking": False})
    expected, _ = render_jinja_template(
        [CHAT], tools=TOOLS, chat_template=source, add_generation_prompt=True, bos_token="<s>", enable_thinking=False
    )
    assert rendered == expected[0]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "concatenate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for x in %}", "template is broken"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "[Rr]ange too big"),
    ],
)
def test_failures_are_requests_to_mend(source, says):
    with pytest.raises(InvalidRequestError, match=says):
        template(source).render(CHAT)


def test_text_parts_are_joined_for_templates_that_read_strings():
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert template("{{ messages[0].content + '!' }}").render(parts) == "a\nb!"
    reads_parts = "{% if messages[0].content is string %}{% endif %}{{ messages[0].content[1].text }}"
    assert template(reads_parts).render(parts) == "b"
    with pytest.raises(InvalidRequestError, match="text only"):
        template("{{ messages }}").render([{"role": "user", "content": [{"type": "image_url"}]}])


def test_tool_arguments_arrive_as_objects():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    assert template("{{ messages[0].tool_calls[0].function.arguments.x }}").render([call]) == "1"
    broken = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
    assert template("{{ messages[0].tool_calls[0].function.arguments }}").render([broken]) == "{"


def test_messages_stay_as_they_were():
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(InvalidRequestError):
        template("{{ messages.append(1) }}").render(messages)
    assert messages == [{"role": "user", "content": "a"}]
