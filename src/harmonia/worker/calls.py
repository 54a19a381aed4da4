"""Function calls in the notations that models write them in: JSON, Python, XML. Nothing here streams."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass

from harmonia.protocol.messages import JsonObject

MAX_PYTHON_CHARS = 65_536

_decode_json = json.JSONDecoder(strict=False).raw_decode
_between = re.compile(r"[\s;,]*")
_xml_function = re.compile(r"\s*<function=([^>\s]+)>(.*?)(?:</function>\s*|\Z)", re.DOTALL)
_xml_parameter = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """A function and its arguments."""

    name: str
    arguments: JsonObject

    def arguments_json(self) -> str:
        """The arguments as JSON text."""
        return json.dumps(self.arguments, ensure_ascii=False)


class Functions:
    """What the caller declared: names, and each function's parameters."""

    def __init__(self, tools: tuple[JsonObject, ...]) -> None:
        declared = [tool["function"] for tool in tools]
        self._schemas: dict[str, object] = {function["name"]: function.get("parameters") for function in declared}

    def __contains__(self, name: object) -> bool:
        return name in self._schemas

    def parameters(self, name: str) -> JsonObject:
        """Schema of each parameter, in the order of declaration."""
        schema = self._schemas.get(name)
        properties = schema.get("properties") if isinstance(schema, dict) else None
        return properties if isinstance(properties, dict) else {}

    def all_known(self, calls: list[Call] | None) -> list[Call] | None:
        """The calls if every one of them was declared."""
        return calls if calls and all(call.name in self for call in calls) else None


def json_calls(text: str) -> list[Call] | None:
    """Calls in one or more JSON objects, or arrays of them; None if there is anything else or nothing."""
    calls: list[Call | None] = []
    at = _skip_between(text, 0)
    try:
        while at < len(text):
            value, at = _decode_json(text, at)
            calls += [_json_call(item) for item in (value if isinstance(value, list) else [value])]
            at = _skip_between(text, at)
    except (ValueError, RecursionError):
        return None
    return _complete(calls)


def named_json_call(name: str, arguments: str) -> list[Call] | None:
    """One call whose name stands apart from its arguments in JSON."""
    return _complete([_json_call({"name": name.strip(), "arguments": arguments.strip()})])


def _complete(calls: list[Call | None]) -> list[Call] | None:
    found = [call for call in calls if call is not None]
    return found if found and len(found) == len(calls) else None


def _skip_between(text: str, at: int) -> int:
    found = _between.match(text, at)
    return found.end() if found else at


def _json_call(item: object) -> Call | None:
    if not isinstance(item, dict):
        return None
    function = item.get("function")
    if isinstance(function, dict):
        item = function
    name = item.get("name", function)
    arguments = next((item[key] for key in ("arguments", "parameters", "args") if key in item), None)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", strict=False)
        except (ValueError, RecursionError):
            return None
    if arguments is None:
        arguments = {}
    return Call(name, arguments) if isinstance(name, str) and name and isinstance(arguments, dict) else None


def python_calls(text: str, functions: Functions) -> list[Call] | None:
    """Calls written in Python: `f(a=1)`, `print(f(a=1))`, `[f(a=1), g()]`, one or several lines; None if not that."""
    if len(text) > MAX_PYTHON_CHARS:
        return None
    try:
        body = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    values = [line.value if isinstance(line, ast.Expr | ast.Assign) else line for line in body]
    items = [item for value in values for item in (value.elts if isinstance(value, ast.List) else [value])]
    return _complete([_python_call(item, functions) for item in items])


def _python_call(node: ast.AST, functions: Functions) -> Call | None:
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    if name == "print" and len(node.args) == 1:
        return _python_call(node.args[0], functions)
    parameters = list(functions.parameters(name))
    if len(node.args) > len(parameters) or any(keyword.arg is None for keyword in node.keywords):
        return None
    given = [*zip(parameters, node.args, strict=False), *((word.arg or "", word.value) for word in node.keywords)]
    try:
        arguments = {key: ast.literal_eval(value) for key, value in given}
        json.dumps(arguments)  # sets and bytes are literals of Python, not of JSON
    except (ValueError, TypeError):
        return None
    return Call(name, arguments)


def xml_calls(text: str, functions: Functions) -> list[Call] | None:
    """Calls like `<function=f><parameter=a>1</parameter></function>`; None if there is anything else or nothing."""
    calls: list[Call | None] = []
    at = 0
    while at < len(text):
        found = _xml_function.match(text, at)
        if found is None or found.end() == at:
            return None
        calls.append(_xml_call(found[1], found[2], functions))
        at = found.end()
    return _complete(calls)


def _xml_call(name: str, body: str, functions: Functions) -> Call | None:
    if body.lstrip().startswith("{"):
        calls = named_json_call(name, body)
        return calls[0] if calls else None
    parameters = functions.parameters(name)
    return Call(name, {key: _typed(value, parameters.get(key)) for key, value in _xml_parameter.findall(body)})


def _typed(text: str, schema: object) -> object:
    """The value of an XML parameter: text, unless its schema says otherwise and the text agrees."""
    if not isinstance(schema, dict) or schema.get("type", "string") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
