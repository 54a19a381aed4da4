"""What a package offers is written down, and is there."""

import ast
import importlib

import pytest

from tests.project.tree import module_name, parse, python_files

PACKAGES = [path for path in python_files("src") if path.name == "__init__.py"]


@pytest.mark.parametrize("name", [module_name(path) for path in PACKAGES])
def test_offered_names_are_there(name: str) -> None:
    package = importlib.import_module(name)
    offered = getattr(package, "__all__", [])
    missing = [attribute for attribute in offered if not hasattr(package, attribute)]
    assert not missing
    assert len(offered) == len(set(offered))


def test_every_folder_is_a_package() -> None:
    """Import-linter and mypy look into packages only."""
    folders = {path.parent for path in python_files("src")}
    assert not sorted(str(folder) for folder in folders - {path.parent for path in PACKAGES})


def test_packages_say_what_they_offer() -> None:
    """Ruff keeps `__all__` sorted (RUF022) and names what is imported without being offered (F401)."""
    silent = []
    for path in PACKAGES:
        body = parse(path).body
        imports = any(isinstance(node, ast.Import | ast.ImportFrom) for node in body)
        targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
        if imports and not any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            silent.append(f"{path}:1: imports names but has no __all__")
    assert not silent, "\n".join(silent)


def test_every_module_says_what_it_is() -> None:
    modules = python_files("src", "benchmarks", "examples", "tests")
    bare = [f"{path}:1: no docstring" for path in modules if not ast.get_docstring(parse(path))]
    assert not bare, "\n".join(bare)
