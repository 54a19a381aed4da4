"""Which built-in recipes there are. A recipe is a folder beside this file, and the folder's name is its key."""

from __future__ import annotations

import ast
from pathlib import Path

ENTRYPOINT = "main.py"
_FOLDER = Path(__file__).parent


def recipe_keys() -> list[str]:
    """The keys of all built-in recipes, sorted."""
    return sorted(file.parent.name for file in _FOLDER.glob(f"*/{ENTRYPOINT}"))


def find_recipe(key: str) -> Path | None:
    """The folder of the built-in recipe with that key, None if there is none."""
    return _FOLDER / key if key in recipe_keys() else None


def recipe_summary(key: str) -> str:
    """What a built-in recipe does, in one line: the first of its package, which is not imported for that."""
    source = (_FOLDER / key / "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
