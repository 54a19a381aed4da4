"""`@recipe_main`: the mark of the function that a recipe begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_MARK = "is_recipe_main"


def recipe_main(func: Function) -> Function:
    """Mark the function, sync or async, that runs the recipe; a recipe has exactly one.

    Its parameters are filled by their annotations: a `RecipeContext`, a subclass of `InputConfig`, both in any order,
    or neither. Recipes are usually async: while a sync one computes, the client's connection stands still.
    """
    setattr(func, _MARK, True)
    return func


def is_recipe_main(value: object) -> bool:
    """True for a function that `recipe_main` has marked."""
    return callable(value) and getattr(value, _MARK, False) is True
