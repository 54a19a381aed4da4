"""Every field of the configuration says what it is for: a string below it, or `help=` in its definition."""

import ast
from collections.abc import Iterator
from itertools import pairwise

from tests.project.tree import parse, python_files


def silent_fields(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The line and the name of each public field that nothing explains."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for field, after in pairwise([*node.body, ast.Pass()]):
                if is_field(field) and not explains(after) and not has_help(field):
                    yield field.lineno, f"{node.name}.{ast.unparse(field.target)}"


def is_field(node: ast.stmt) -> bool:
    """An annotated public name that belongs to each object, not to the class."""
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
        return False
    return not node.target.id.startswith("_") and "ClassVar" not in ast.unparse(node.annotation)


def explains(node: ast.stmt) -> bool:
    """A string that is not empty, standing alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and bool(str(node.value.value).strip())


def has_help(field: ast.stmt) -> bool:
    """`help=` or `description=` anywhere in the field's annotation or default."""
    keywords = (node.arg for node in ast.walk(field) if isinstance(node, ast.keyword))
    return any(word in ("help", "description") for word in keywords)


def test_every_field_is_explained() -> None:
    paths = [path for path in python_files("src") if "config" in (path.stem, path.parent.name)]
    found = [f"{path}:{line}: {name}" for path in paths for line, name in silent_fields(parse(path))]
    assert not found, "\n".join(["these fields say nothing:", *found])


def test_silent_fields_are_found() -> None:
    source = '''
class Config:
    """All of it."""

    port: int = 9000
    """Where to listen."""
    host: str
    limit: Annotated[int, Field(description="How many.")] = 3
    code: ClassVar[str] = "x"
    last: int
    ""
'''
    assert list(silent_fields(ast.parse(source))) == [(7, "Config.host"), (10, "Config.last")]
