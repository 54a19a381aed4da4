"""Models, data sets and recipes of a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from harmonia.cli import server_completion
from harmonia.cli.app import app
from harmonia.cli.server_access import PANEL, ProjectOption, moment, server, show, show_one
from harmonia.errors import EntityNotFoundError, HarmoniaError, InvalidRequestError
from harmonia.sdk import Adaptive
from harmonia.sdk.files import UploadProgress, default_recipe_key, slug
from harmonia.sdk.inputs import RecipeDetails
from harmonia.sdk.operations.datasets import Dataset
from harmonia.sdk.operations.recipes import Recipe


@app.command(rich_help_panel=PANEL)
def models(
    project: ProjectOption = None,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="All models of the registry.")] = False,
) -> None:
    """List the models that a project serves."""
    with server(project) as adaptive:
        if everywhere:
            rows = {
                model.id: (model.key, model.name, model.online, model.is_training, model.error)
                for model in adaptive.models.list()
            }
            show(rows, ("key", "name", "state", "in training", "error"))
        else:
            services = adaptive.projects.models()
            show(
                {item.id: (item.key, item.name, item.status, item.is_default) for item in services},
                ("key", "name", "state", "default"),
            )


@app.command(rich_help_panel=PANEL)
def upload(
    file: Annotated[Path, typer.Argument(help="JSON lines.", show_default=False)],
    project: ProjectOption = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="That of the file unless given.")] = None,
    session: Annotated[str | None, typer.Option(help="Continue an upload that was cut off; it said which.")] = None,
) -> None:
    """Make a data set of a file; its key is made of its name."""
    with server(project) as adaptive:
        dataset = _upload(adaptive, file, name or file.stem, session)
        records = dataset.records
        show_one(dataset.id, {"data set": dataset.key, "kind": dataset.kind, "records": records, "id": dataset.id})


@app.command(rich_help_panel=PANEL)
def publish(
    recipe: Annotated[Path, typer.Argument(help="A .py file, or a folder with main.py.", show_default=False)],
    project: ProjectOption = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="That of the file or folder unless given.")] = None,
    key: Annotated[str | None, typer.Option("--key", "-k", help="Made of the name unless given.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the recipe of that key.")] = False,
) -> None:
    """Put a recipe into a project."""
    chosen = key or (slug(name) if name else default_recipe_key(recipe))
    with server(project) as adaptive:
        existing = adaptive.recipes.get(chosen)
        if existing is not None and not force:
            raise InvalidRequestError(f"there is a recipe {chosen!r} already; --force replaces its code", field="key")
        details: RecipeDetails = {} if name is None else {"name": name}
        if existing is None:
            published = adaptive.recipes.upload(recipe, chosen, **details)
        else:
            published = adaptive.recipes.update(existing.id, recipe, **details)
        show_one(published.id, {"recipe": published.key, "name": published.name, "id": published.id})


@app.command(rich_help_panel=PANEL)
def recipes(project: ProjectOption = None) -> None:
    """List the recipes that a project may run."""
    with server(project) as adaptive:
        rows = {
            recipe.id: (recipe.key, recipe.name, _kind(recipe), moment(recipe.updated_at or recipe.created_at))
            for recipe in adaptive.recipes.list()
        }
        show(rows, ("key", "name", "kind", "changed"))


@app.command(rich_help_panel=PANEL)
def schema(
    recipe: Annotated[
        str, typer.Argument(help="Key or id.", show_default=False, autocompletion=server_completion.recipes)
    ],
    project: ProjectOption = None,
) -> None:
    """Print the JSON schema of a recipe's arguments."""
    with server(project) as adaptive:
        print(json.dumps(find_recipe(adaptive, recipe).json_schema, indent=2))


def find_recipe(adaptive: Adaptive, recipe: str) -> Recipe:
    """A recipe of the project; EntityNotFoundError that says how to list them."""
    found = adaptive.recipes.get(recipe)
    if found is None:
        raise EntityNotFoundError(f"there is no recipe {recipe!r}; `harmonia recipes` lists them", entity="recipe")
    return found


def _upload(adaptive: Adaptive, file: Path, name: str, session: str | None) -> Dataset:
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)

        def advance(done: UploadProgress) -> None:
            nonlocal session
            session = done.session_id
            progress.update(task, completed=done.sent_bytes, total=done.total_bytes)

        try:
            return adaptive.datasets.upload(file, slug(name), name, on_progress=advance, session_id=session)
        except (HarmoniaError, KeyboardInterrupt):
            if session is not None:
                console.print(f"`--session {session}` continues this upload", highlight=False, soft_wrap=True)
            raise


def _kind(recipe: Recipe) -> str:
    return "built-in" if recipe.builtin else "global" if recipe.is_global else "own"
