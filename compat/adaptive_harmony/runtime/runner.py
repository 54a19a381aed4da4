"""Runs a recipe: `python -m adaptive_harmony.runtime.runner`."""

from harmonia.client.recipe import RecipeConfig, RecipeContext, RunnerArgs
from harmonia.client.recipe.runner import (
    _get_params,
    _install_recipe_dependencies,
    _load_and_run_recipe,
    _parse_script_metadata,
    main,
)

__all__ = [
    "RecipeConfig",
    "RecipeContext",
    "RunnerArgs",
    "_get_params",
    "_install_recipe_dependencies",
    "_load_and_run_recipe",
    "_parse_script_metadata",
    "main",
]

if __name__ == "__main__":
    main()
