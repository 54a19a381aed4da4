"""Sizes that no file, class or function may exceed; ruff holds complexity, branches and statements beside them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.tree import ROOT, parse, python_files

FILE_LINES, INIT_LINES, CLASS_LINES, FUNCTION_LINES, KERNEL_LINES = 500, 60, 300, 60, 100
ARGUMENTS, NESTING = 7, 4
NAMELESS = {"common", "helper", "helpers", "misc", "util", "utils"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCK = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


def findings(path: Path, source: str) -> Iterator[str]:
    """Every breach of a limit in one file, as `file:line: what`."""
    lines = source.count("\n") + (not source.endswith("\n"))
    is_published = path.parts[0] == "compat"  # its names are those that recipes import already
    limit = INIT_LINES if path.name == "__init__.py" and not is_published else FILE_LINES
    if lines > limit and not is_migration(path):
        yield f"{path}:{limit + 1}: the file has {lines} lines, more than {limit}"
    if NAMELESS & set(re.split(r"[/_.]", path.as_posix())) and not is_published:
        yield f"{path}:1: the name does not say what is inside"
    for node in ast.walk(ast.parse(source)):
        for message in node_findings(path, node):
            yield f"{path}:{getattr(node, 'lineno', 1)}: {message}"


def node_findings(path: Path, node: ast.AST) -> Iterator[str]:
    """What is wrong with one function, class or statement."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from function_findings(path, node)
        case ast.ClassDef():
            if length(node) > CLASS_LINES:
                yield f"class {node.name} has {length(node)} lines, more than {CLASS_LINES}"
            if path.parts[0] == "tests" and node.name.startswith("Test"):
                yield f"class {node.name}: tests are plain functions"
        case ast.Global():
            yield f"global {', '.join(node.names)}: pass state explicitly"


def function_findings(path: Path, node: Function) -> Iterator[str]:
    """Length, arguments and nesting; kernels may be longer and take any arguments, commands take their options."""
    kernel = "kernels" in path.parts
    limit = KERNEL_LINES if kernel else FUNCTION_LINES
    if length(node) > limit and not is_migration(path):
        yield f"{node.name}() has {length(node)} lines, more than {limit}"
    if arguments(node) > ARGUMENTS and not kernel and not is_command(path, node):
        yield f"{node.name}() takes {arguments(node)} arguments, more than {ARGUMENTS}"
    if nesting(node) > NESTING:
        yield f"{node.name}() nests {nesting(node)} deep, more than {NESTING}"


def is_migration(path: Path) -> bool:
    """A step of the database's history: written by a generator, and never changed."""
    return path.parts[-3:-1] == ("migrations", "versions")


def length(node: Function | ast.ClassDef) -> int:
    """Lines from `def` or `class` to the last, docstring included and decorators not."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def arguments(node: Function) -> int:
    """Named arguments, without the object or class that a method belongs to."""
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_command(path: Path, node: Function) -> bool:
    """A command of the command line declares each option as an argument."""
    decorators = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return "cli" in path.parts and any(getattr(d, "attr", "") in ("command", "callback") for d in decorators)


def nesting(node: ast.AST) -> int:
    """Depth of blocks inside blocks; `elif` is no deeper than its `if`, and functions inside count for themselves."""
    depths = [0]
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTION, ast.ClassDef)):
            is_elif = isinstance(node, ast.If) and [child] == node.orelse and child.col_offset == node.col_offset
            depths.append(nesting(child) + (isinstance(child, BLOCK) and not is_elif))
    return max(depths)


def public(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """The functions, classes and methods that others may use."""
    for node in body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def lazy_imports(tree: ast.Module) -> set[int]:
    """The lines of imports inside functions, those of GPU kernels left out: a CPU install has no Triton."""
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]
    inside = (node for function in functions for node in ast.walk(function))
    return {
        node.lineno
        for node in inside
        if isinstance(node, ast.Import | ast.ImportFrom) and not (getattr(node, "module", "") or "").endswith("_triton")
    }


def test_every_file_keeps_the_limits() -> None:
    found = [f for path in python_files() for f in findings(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_imports_inside_functions_are_rare() -> None:
    text = [line for path in python_files("src") for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]
    code = sum(not line.lstrip().startswith("#") for line in text if line.strip())
    found = [f"{path}:{line}" for path in python_files("src") for line in sorted(lazy_imports(parse(path)))]
    assert len(found) <= 1 + code // 1000, "\n".join(["at most one in a thousand lines:", *found])


def test_public_names_are_documented() -> None:
    names = [(path, node) for path in python_files("src") for node in public(parse(path).body)]
    bare = [f"{path}:{node.lineno}: {node.name}" for path, node in names if not ast.get_docstring(node)]
    assert len(bare) <= 0.2 * len(names), "\n".join(["more than a fifth of the public names say nothing:", *bare])


DEEP = "".join("    " * depth + "if x:\n" for depth in range(1, 6)) + "    " * 6 + "pass\n"


@pytest.mark.parametrize(
    ("path", "source", "says"),
    [
        ("src/a.py", "x = 1\n" * 501, "the file has 501 lines"),
        ("src/a/__init__.py", "x = 1\n" * 61, "the file has 61 lines"),
        ("src/a_utils.py", "", "the name does not say"),
        ("src/a.py", "def f():\n" + "    x()\n" * 60, "f() has 61 lines"),
        ("src/kernels/a.py", "def f():\n" + "    x()\n" * 100, "f() has 101 lines"),
        ("src/a.py", "class A:\n" + "    x = 1\n" * 300, "class A has 301 lines"),
        ("src/a.py", "def f(a, b, c, d, *, e, f, g, h): ...\n", "f() takes 8 arguments"),
        ("src/a.py", "def f(x):\n" + DEEP, "f() nests 5 deep"),
        ("src/a.py", "def f():\n    global x\n", "global x"),
        ("tests/a.py", "class TestA: ...\n", "tests are plain functions"),
    ],
)
def test_each_limit_is_enforced(path: str, source: str, says: str) -> None:
    (finding,) = findings(Path(path), source)
    assert says in finding


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("src/kernels/a.py", "def f(a, b, c, d, e, f, g, h): ...\n"),
        ("src/cli/a.py", "@app.command()\ndef f(a, b, c, d, e, f, g, h): ...\n"),
        ("src/a.py", "class A:\n    def f(self, a, b, c, d, e, f, g): ...\n"),
        ("src/a.py", "def f(x):\n    if x: ...\n" + "    elif x: ...\n" * 9),
        ("src/db/migrations/versions/a.py", "def f():\n" + "    x()\n" * 600),
    ],
)
def test_what_is_exempt_passes(path: str, source: str) -> None:
    assert not list(findings(Path(path), source))
