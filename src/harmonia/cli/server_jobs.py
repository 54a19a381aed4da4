"""Jobs of a server: start, list, watch, cancel."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from harmonia.cli import server_completion
from harmonia.cli.app import app
from harmonia.cli.recipe_flags import HELP, overlay, parse_flags, print_help, read_values
from harmonia.cli.server_access import PANEL, ProjectOption, duration, moment, server, show, show_one
from harmonia.cli.server_entities import find_recipe
from harmonia.errors import EntityNotFoundError
from harmonia.sdk import Adaptive
from harmonia.sdk.operations.jobs import Job, Stage

INTERRUPTED = 130

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id.", show_default=False)]


# What is no option of this command is one of the recipe.
@app.command(rich_help_panel=PANEL, context_settings={"ignore_unknown_options": True})
def launch(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Key or id of a recipe of the server.", show_default=False, autocompletion=server_completion.recipes
        ),
    ],
    parameters: Annotated[
        list[str] | None,
        typer.Argument(metavar="--PARAMETER VALUE", help="The recipe's own; `-- --help` lists them."),
    ] = None,
    project: ProjectOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "--parameters", dir_okay=False, help="A JSON file with parameters; flags override it."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Of the job.")] = None,
    compute_pool: Annotated[
        str | None,
        typer.Option("--compute-pool", "-c", help="Where it runs.", autocompletion=server_completion.compute_pools),
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", "-g", min=0, help="How many it takes.")] = 1,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it has ended.")] = False,
) -> None:
    """Start a recipe on a server; `harmonia run` runs one on this machine.

    [bold]Examples[/bold]

      harmonia launch sft -- --help

      harmonia publish ./lesson.py | xargs harmonia launch --gpus 2
    """
    words = tuple(parameters or ())
    with server(project) as adaptive:
        found = find_recipe(adaptive, recipe)
        if any(word in HELP for word in words):
            print_help(Console(), recipe, found.description, found.json_schema, "launch")
            return
        args = overlay({} if config is None else read_values(config), parse_flags(found.json_schema, words))
        job = adaptive.jobs.run(found.id, gpus, args, name, compute_pool=compute_pool)
        if follow:
            job = followed(adaptive, job)
        show_job(job)
        exit_if_failed(job)


@app.command(rich_help_panel=PANEL)
def job(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until it has ended.")] = False,
    logs: Annotated[bool, typer.Option("--logs", "-l", help="Print what it wrote instead.")] = False,
) -> None:
    """Show a job of a server: its state, its stages, its error."""
    with server() as adaptive:
        found = adaptive.jobs.get(_checked_id(job_id))
        if found is None:
            raise _not_found(job_id)
        if follow:
            found = followed(adaptive, found)
        if logs:
            print(adaptive.jobs.logs(found.id), end="")
        else:
            show_job(found)
        exit_if_failed(found)


@app.command(rich_help_panel=PANEL)
def cancel(job_id: JobId) -> None:
    """Stop a job of a server."""
    with server() as adaptive:
        show_job(adaptive.jobs.cancel(_checked_id(job_id)))


def _checked_id(job_id: str) -> str:
    """The id, if it can be one; EntityNotFoundError says how to list them."""
    try:
        return str(uuid.UUID(job_id))
    except ValueError as error:
        raise _not_found(job_id) from error


def list_jobs(project: str | None, last: int) -> None:
    """The newest jobs of a server: those of one project, or of all that the caller may read."""
    with server() as adaptive:
        rows = {
            job.id: (
                job.id,
                job.name,
                job.status,
                moment(job.created_at),
                duration(job.duration_ms),
                None if job.created_by is None else job.created_by.name,
            )
            for job in adaptive.jobs.list(project, page={"first": last}).nodes
        }
        show(rows, ("job", "name", "state", "made", "took", "by"))


class _Watch:
    """Tells on standard error what has changed in a job."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._told = ""

    def __call__(self, job: Job) -> None:
        running = [_stage(stage) for stage in job.stages if stage.status == "RUNNING"]
        line = f"{job.status.lower()} {job.progress:.0%} {'; '.join(running)}".rstrip()
        if line != self._told:
            self._console.print(escape(line), soft_wrap=True)
            self._told = line


def followed(adaptive: Adaptive, job: Job) -> Job:
    """The job when it has ended; Ctrl-C ends the waiting only."""
    try:
        return adaptive.jobs.wait(job, on_progress=_Watch())
    except KeyboardInterrupt as interrupt:
        Console(stderr=True).print(f"it goes on; `harmonia cancel {job.id}` stops it", highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from interrupt


def show_job(job: Job) -> None:
    """How a job fares."""
    fields: dict[str, object] = {
        "job": job.id,
        "name": job.name,
        "state": job.status,
        "progress": f"{job.progress:.0%}",
    }
    fields.update({f"stage {stage.name}": _stage(stage) for stage in job.stages})
    fields.update({"made": moment(job.created_at), "took": duration(job.duration_ms)})
    fields.update({f"artifact {artifact.name}": f"{artifact.kind} {artifact.id}" for artifact in job.artifacts})
    show_one(job.id, fields)


def _not_found(job_id: str) -> EntityNotFoundError:
    return EntityNotFoundError(f"there is no job {job_id!r}; `harmonia jobs --server` lists them", entity="job")


def _stage(stage: Stage) -> str:
    total = None if stage.info is None else stage.info.total_num_samples
    done = None if stage.info is None else stage.info.processed_num_samples
    samples = f" {done or 0} of {total}" if total is not None else ""
    return f"{stage.name} {stage.status.lower()}{samples}"


def exit_if_failed(job: Job) -> None:
    """Tell why, and end with code 1."""
    if job.status == "FAILED":
        Console(stderr=True).print(job.error or "the job does not say why it failed", markup=False, soft_wrap=True)
        raise typer.Exit(1)
