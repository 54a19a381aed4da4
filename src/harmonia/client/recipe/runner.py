"""Running a recipe: its input is validated and checked, then its function is called.

`load_recipe` finds the function, `run_recipe` calls it. `main` is the entry point for platforms that launch recipes by
`python -m adaptive_harmony.runtime.runner`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmonia import log as logs
from harmonia.client.recipe.config import RunnerArgs
from harmonia.client.recipe.context import RecipeContext
from harmonia.client.recipe.current import running
from harmonia.client.recipe.dependencies import INSTALL_TIMEOUT_SECS, script_requirements, use_dependencies
from harmonia.client.recipe.inputs import Checkable, check_config, read_input, validate_input
from harmonia.client.recipe.loading import Recipe, RecipeFunction, import_recipe, load_recipe, recipe_functions
from harmonia.errors import InvalidRequestError, UnavailableError
from harmonia.log import get_logger

__all__ = [
    "INSTALL_TIMEOUT_SECS",
    "Checkable",
    "Recipe",
    "RecipeFunction",
    "RunnerArgs",
    "_async_main",
    "_download_recipe_from_concorde",
    "_get_params",
    "_install_recipe_dependencies",
    "_load_and_run_recipe",
    "_parse_script_metadata",
    "check_config",
    "load_recipe",
    "main",
    "run_recipe",
]

log = get_logger(__name__)


async def run_recipe(
    ctx: RecipeContext, recipe: Recipe | RecipeFunction, user_input: Mapping[str, Any] | None = None
) -> Any:
    """Run a recipe; what its function returns.

    user_input: the values of its config; None takes them from `ctx.config.user_input_file`, else from the environment's
    USER_INPUT_JSON, else all defaults. Before the function is called, InvalidRequestError names every field that does
    not validate, or every model, dataset or grader in the config that cannot be used.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.of(recipe)
    given = read_input(ctx.config) if user_input is None else user_input
    if recipe.config_class is None:
        if user_input:
            raise InvalidRequestError(
                f"recipe {recipe.name} takes no input, but got {', '.join(user_input)}; give its function a parameter "
                "annotated with a subclass of InputConfig, or leave them out"
            )
        ctx.job.describe(recipe.name, {})
        with running(ctx):
            return await recipe(ctx, None)
    config = validate_input(recipe.config_class, given)
    ctx.job.describe(recipe.name, config.model_dump(mode="json", fallback=str))
    await check_config(config, ctx)
    with running(ctx):
        return await recipe(ctx, config)


# ----------------------------------------------------------------------- launched by a platform; published names


def main() -> None:
    """Run the recipe that the command line names; the process ends with 1 if it fails, with the reason in the log."""
    logs.configure()
    try:
        asyncio.run(_async_main(RunnerArgs()))  # type: ignore[call-arg]  # its fields come from elsewhere
    except Exception:
        log.exception("the recipe failed")
        sys.exit(1)


async def _async_main(runner_args: RunnerArgs) -> None:
    if not runner_args.recipe_key:
        raise ValueError("recipe_key is missing; give --recipe-key, or ADAPTIVE_RECIPE_KEY in the environment")
    async with RecipeContext.from_config(runner_args) as ctx:
        os.environ["HARMONY_JOB_ID"] = ctx.job.job_id
        path = _download_recipe_from_concorde(ctx, runner_args.recipe_key, runner_args.entrypoint)
        _install_recipe_dependencies(Path(path), runner_args.entrypoint)
        await _load_and_run_recipe(ctx, path, runner_args.entrypoint)


def _download_recipe_from_concorde(context: RecipeContext, recipe_key: str, entrypoint: str = "main.py") -> str:
    """The folder of a recipe from the control plane; without one, the file or folder that the key names."""
    if context.control_plane is None:
        if Path(recipe_key).exists():
            return recipe_key
        raise UnavailableError(
            f"recipe {recipe_key!r} is no file or folder, and without a control plane there is nowhere else to look"
        )
    folder = context.recipes_dir / recipe_key
    archive = folder.with_suffix(".zip")
    url = context.control_plane.get_recipe_download_url(recipe_key)
    context.control_plane.download_file(url, str(archive))
    with zipfile.ZipFile(archive) as recipe:
        recipe.extractall(folder)
    if not (folder / entrypoint).is_file():
        raise InvalidRequestError(f"recipe {recipe_key!r} has no {entrypoint}")
    return str(folder)


def _install_recipe_dependencies(entry: Path, entrypoint: str = "main.py") -> None:
    """Install what a recipe declares into a cache of this user, and let it be imported."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    use_dependencies(entry, entrypoint, cache / "harmonia" / "recipes")


def _parse_script_metadata(file_path: Path) -> list[str] | None:
    """The requirements in a file's metadata block; None without one."""
    return script_requirements(Path(file_path))


async def _load_and_run_recipe(context: RecipeContext, recipe_path: str, entrypoint: str = "main.py") -> None:
    """Run the recipe at a path. Without `@recipe_main` a warning and nothing more; ValueError for several."""
    functions = recipe_functions(import_recipe(recipe_path, entrypoint))
    if not functions:
        log.warning("%s has no @recipe_main; there is nothing to run", recipe_path)
        return
    if len(functions) > 1:
        names = ", ".join(function.__name__ for function in functions)
        raise ValueError(f"{recipe_path} has several functions with @recipe_main: {names}; leave it on one")
    await run_recipe(context, Recipe.of(functions[0], str(recipe_path)))


def _get_params(func: RecipeFunction, context: RecipeContext) -> list[Any]:
    """What to call the function with, in the order of its parameters; the config is that of the launched recipe."""
    recipe = Recipe.of(func)
    config = validate_input(recipe.config_class, read_input(context.config)) if recipe.config_class else None
    return list(recipe.bound(context, config).arguments.values())
