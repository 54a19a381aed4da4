"""Runs a recipe: `python -m harmony_client.runtime.runner`."""

from harmonia.client.recipe import RunnerArgs
from harmonia.client.recipe.dependencies import INSTALL_TIMEOUT_SECS
from harmonia.client.recipe.runner import (
    _async_main,
    _download_recipe_from_concorde,
    _get_params,
    _install_recipe_dependencies,
    _load_and_run_recipe,
    _parse_script_metadata,
    main,
)

__all__ = [
    "INSTALL_TIMEOUT_SECS",
    "RunnerArgs",
    "_async_main",
    "_download_recipe_from_concorde",
    "_get_params",
    "_install_recipe_dependencies",
    "_load_and_run_recipe",
    "_parse_script_metadata",
    "main",
]

if __name__ == "__main__":
    main()
