"""What recipes call takes the arguments that they pass: names, order and defaults as `signatures.txt` lists them."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TABLE = Path(__file__).with_name("signatures.txt")
Positional = list[tuple[str, Any]]
NO_DEFAULT, ANY_DEFAULT = "required", "..."


def rows() -> Iterator[tuple[str, str]]:
    """Every module with each of its signatures."""
    module = ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            yield module, line.strip()
        elif line and not line.startswith("#"):
            module = line


@pytest.mark.parametrize(("module", "signature"), list(rows()), ids=lambda text: text.split("(")[0].split()[-1])
def test_arguments(module: str, signature: str) -> None:
    is_async = signature.startswith("async ")
    name, expected = read(signature.removeprefix("async "))
    thing = importlib.import_module(module)
    for part in name.split("."):
        thing = getattr(thing, part)
    assert inspect.iscoroutinefunction(thing) == is_async
    present = parameters(thing, bound="." in name)
    in_order = [p.name for p in present.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert in_order[: len(expected.positional)] == expected.positional
    takes_any = any(p.kind is p.VAR_KEYWORD for p in present.values())
    assert [word for word in expected.defaults if word not in present and not takes_any] == []
    changed = {
        word: (default, shown(present[word].default))
        for word, default in expected.defaults.items()
        if word in present and not agrees(default, present[word].default)
    }
    assert changed == {}
    assert not expected.takes_any or takes_any


class Arguments:
    """The arguments that a signature in the table names."""

    def __init__(self, node: ast.arguments) -> None:
        self.positional = [argument.arg for argument in node.args]
        padding = [None] * (len(node.args) - len(node.defaults))
        pairs = [*zip(node.args, [*padding, *node.defaults], strict=True)]
        pairs += zip(node.kwonlyargs, node.kw_defaults, strict=True)
        self.defaults = {a.arg: NO_DEFAULT if d is None else ast.unparse(d) for a, d in pairs}
        self.takes_any = node.kwarg is not None


def read(signature: str) -> tuple[str, Arguments]:
    """The qualified name and the arguments of one line."""
    name, _, rest = signature.partition("(")
    function = ast.parse(f"def f({rest}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    return name, Arguments(function.args)


def parameters(thing: Any, bound: bool) -> dict[str, inspect.Parameter]:
    """The arguments that a caller passes; those of a method without the object."""
    found = list(inspect.signature(thing).parameters.values())
    if bound and found and found[0].name == "self":
        found = found[1:]
    return {parameter.name: parameter for parameter in found}


def agrees(expected: str, default: Any) -> bool:
    """Whether a default is the expected one. What must be given there may have a default here."""
    if expected in (NO_DEFAULT, ANY_DEFAULT):
        return expected == NO_DEFAULT or default is not inspect.Parameter.empty
    value = ast.literal_eval(expected)
    is_empty = value in ([], {}) and default in ([], {}, (), None)  # an empty tuple cannot be changed by accident
    return is_empty or shown(default) == shown(value) or str(default) == "<factory>"


def shown(default: Any) -> str:
    """A default as text, numbers without their type."""
    return repr(float(default)) if isinstance(default, int | float) and not isinstance(default, bool) else repr(default)
