"""Chat templates: Jinja programs that come with a model and turn messages into its prompt.

They are strangers' code: they run in Jinja's immutable sandbox, see plain data only, and whatever they raise becomes an
InvalidRequestError. The functions and filters are those that transformers gives them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from harmonia.errors import InvalidRequestError

Message = Mapping[str, object]
_READS_PARTS = re.compile(
    r"""content['"]?\]?\s+is\s+(not\s+)?(string|iterable|sequence|mapping)"""
    r"""|\bin\s+[\w.\[\]'"]*content['"]?\]?\s*(-?%}|\|\s*selectattr)"""
)
"""Signs that a template handles content given as a list of parts."""
_TOOL_TEMPLATE = "tool_use"


class _GenerationBlocks(Extension):
    """`{% generation %}`, which marks assistant text for training, renders its body."""

    tags = {"generation"}  # noqa: RUF012, as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside, unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """One model's templates: the default, and a second one for requests with tools if the model has it."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """sources: by name, `default` among them. special_tokens: such as `bos_token`, visible to the template."""
        self.sources = dict(sources)
        self.special_tokens = dict(special_tokens)

    @cached_property
    def _compiled(self) -> dict[str, Template]:
        try:
            return {name: _environment().from_string(source) for name, source in self.sources.items()}
        except TemplateError as error:
            raise InvalidRequestError(f"the model's chat template is broken: {error}", field="messages") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        extra: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt. `extra`: variables that this model's template knows, such as `enable_thinking`.

        Errors: InvalidRequestError with the template's own message.
        """
        name = _TOOL_TEMPLATE if tools and _TOOL_TEMPLATE in self.sources else "default"
        template = self._compiled[name]
        reads_parts = _READS_PARTS.search(self.sources[name]) is not None
        variables: dict[str, object] = {
            "messages": [_prepared(message, reads_parts) for message in messages],
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return template.render({**self.special_tokens, **variables, **(extra or {})})
        # A template is a program: what it does with data that it does not expect may raise any of these.
        except (
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            message = f"the model's chat template refuses these messages: {error}"
            raise InvalidRequestError(message, field="messages") from error


def _prepared(message: Message, reads_parts: bool) -> dict[str, object]:
    """As templates expect it: tool arguments as objects, reasoning under its usual name, text parts joined."""
    prepared = dict(message)
    content = prepared.get("content")
    if isinstance(content, list) and not reads_parts:
        prepared["content"] = _joined(content)
    calls = prepared.get("tool_calls")
    if isinstance(calls, list):
        prepared["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
    reasoning = prepared.get("reasoning")
    if reasoning is not None:
        prepared.setdefault("reasoning_content", reasoning)
    return prepared


def _joined(parts: list[object]) -> str:
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError("this model reads text only: 'content' has a part without text", field="messages")
    return "\n".join(str(text) for text in texts)


def _with_parsed_arguments(call: object) -> object:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    if not isinstance(arguments, dict):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
