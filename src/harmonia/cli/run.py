"""`harmonia run`: run a recipe."""

from __future__ import annotations

import inspect
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harmonia.cli.app import app
from harmonia.cli.curves import PER_TOKEN, Points, Series, print_curve, write_png
from harmonia.cli.job_end import next_commands
from harmonia.cli.jobs import COLOURS, find_job, jobs_folder, read_losses
from harmonia.cli.live import Display
from harmonia.cli.options import (
    DEFAULTS,
    DeviceOption,
    Invariant,
    MaxAdapterRank,
    MaxAdapters,
    PrecisionOption,
    Registry,
    Threads,
    engine_config,
    with_port,
)
from harmonia.cli.recipe_flags import HELP, print_help
from harmonia.cli.recipe_job import INTERRUPTED, Order, load, run_job
from harmonia.cli.reporting import configure_log, reported
from harmonia.cli.tables import print_error
from harmonia.client.identifiers import uuid_v7
from harmonia.client.recipe import JobState, read_journal, read_restore_data, recipe_traceback
from harmonia.config import WorkerConfig
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.protocol.instances import SCHEME
from harmonia.recipes import find_recipe, recipe_keys, recipe_summary

RecipeArgument = Annotated[
    str | None, typer.Argument(help="A .py file, a folder with main.py, or the key of a built-in recipe.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Argument(metavar="--PARAMETER VALUE", help="The recipe's own; `-- --help` lists them."),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", dir_okay=False, help="Parameters in a file of JSON; flags override it.")
]
Address = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Use this worker, such as ws://127.0.0.1:9100, and start none.")
]
JobFolder = Annotated[
    Path | None, typer.Option("--job-dir", file_okay=False, help="Folder of this job; a new one in $HARMONIA_JOBS.")
]
Resume = Annotated[
    str | None, typer.Option(metavar="JOB", help="Continue this job, an id or a folder, at its newest checkpoint.")
]
MemoryFraction = Annotated[
    float, typer.Option(min=0.01, max=1.0, help="Share of the device's free memory that models may use.")
]
ListRecipes = Annotated[bool, typer.Option("--list", help="List the built-in recipes and end.")]


# What is no option of this command is one of the recipe.
@app.command(context_settings={"ignore_unknown_options": True})
def run(
    recipe: RecipeArgument = None,
    parameters: Parameters = None,
    config: ConfigFile = None,
    worker: Address = None,
    job_dir: JobFolder = None,
    resume: Resume = None,
    list_recipes: ListRecipes = False,
    registry: Registry = None,
    precision: PrecisionOption = "auto",
    invariant: Invariant = False,
    device: DeviceOption = "auto",
    threads: Threads = None,
    max_adapters: MaxAdapters = DEFAULTS.max_adapters,
    max_adapter_rank: MaxAdapterRank = DEFAULTS.max_adapter_rank,
    memory_fraction: MemoryFraction = DEFAULTS.memory_fraction,
) -> None:
    """Run RECIPE: a Python function, marked with @recipe_main, that trains or evaluates models.

    It runs in this process; its models are on a worker, which is started for it unless --worker names one.

    The recipe's own parameters follow it. One that has the name of an option below goes after a `--`.

    The job leaves a folder with its state, its metrics, a curve of the loss and what the recipe made;
    `harmonia jobs` lists them. Models that it saves go to the registry.

    Ctrl-C cancels: what was saved stays, and nothing is saved half. A second one ends at once.

    [bold]Examples[/bold]

      harmonia run --list

      harmonia run sft -- --help

      harmonia run sft --model-to-train ./Qwen3-0.6B --dataset rows.jsonl --output-model-key support \\
        --learning-rate 5e-4 --epochs 3

      harmonia run ./lesson.py --config lesson.json --epochs 3
    """
    words = tuple(parameters or ())
    if recipe is not None and recipe.startswith("-"):  # with --resume there need not be a recipe
        words, recipe = (recipe, *words), None
    asked = Asked(recipe, words, config, worker, job_dir, resume)
    engine = engine_config(None, None, precision, device, threads, max_adapters, max_adapter_rank)
    engine = msgspec.structs.replace(engine, memory_fraction=memory_fraction, invariant=invariant)
    with reported():
        if list_recipes:
            _list()
        elif any(word in HELP for word in asked.parameters):
            _explain(asked)
        else:
            order = _order(asked, with_port(WorkerConfig(engine=engine), "127.0.0.1", None, registry))
            raise typer.Exit(_run(order))


@dataclass(frozen=True)
class Asked:
    """What the command line says about the job."""

    recipe: str | None
    parameters: tuple[str, ...]
    config: Path | None
    worker: str | None
    job_dir: Path | None
    resume: str | None


# ---------------------------------------------------------------------------------------------- what is to be run


def _order(asked: Asked, worker: WorkerConfig) -> Order:
    if asked.worker is not None and worker != WorkerConfig():
        options = "--registry, --precision, --invariant, --device, --threads, --max-adapters, --max-adapter-rank and"
        message = f"{options} --memory-fraction are for a worker that is started here"
        raise InvalidRequestError(f"{message}; {asked.worker} has its own settings")
    folder = None if asked.resume is None else find_job(asked.resume)
    resumed = None if folder is None else _resumable(folder)
    job_id = uuid_v7() if resumed is None else resumed.job_id
    name, path = _find(asked.recipe if resumed is None else asked.recipe or resumed.recipe)
    return Order(
        name=name,
        path=path,
        job_id=job_id,
        folder=folder or _new_folder(asked.job_dir or jobs_folder() / job_id),
        flags=asked.parameters,
        config_file=asked.config,
        resumed=resumed,
        address=asked.worker,
        worker=worker,
    )


def _find(recipe: str | None) -> tuple[str, Path]:
    """The name of a recipe, which a later run understands from anywhere, and its file or folder."""
    if recipe is None:
        raise InvalidRequestError("which recipe? Give a .py file, a folder, or a key that `harmonia run --list` shows")
    path = Path(recipe).expanduser().absolute()
    if path.exists():
        return str(path), path
    built_in = find_recipe(recipe)
    if built_in is not None:
        return recipe, built_in
    keys = ", ".join(recipe_keys())
    raise InvalidRequestError(f"there is no file or folder {recipe!r}, and no built-in recipe of that key ({keys})")


def _resumable(folder: Path) -> JobState:
    state = read_journal(folder)
    if state.state == "COMPLETED":
        raise InvalidRequestError(f"job {state.job_id} has completed; there is nothing to resume")
    if read_restore_data(folder) is None:
        raise InvalidRequestError(f"job {state.job_id} ended before its first checkpoint; run its recipe anew")
    return state


def _new_folder(folder: Path) -> Path:
    if (folder / "job.json").exists():
        raise InvalidRequestError(f"{folder} holds a job already; --resume it, or give another --job-dir")
    return folder.absolute()


# ------------------------------------------------------------------------------------------- instead of running it


def _list() -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for key in recipe_keys():
        table.add_row(f"[cyan]{escape(key)}[/cyan]", escape(recipe_summary(key)))
    console = Console()
    console.print(table)
    console.print("\n[dim]harmonia run KEY -- --help lists the parameters of one.[/dim]")


def _explain(asked: Asked) -> None:
    name, path = _find(asked.recipe)
    recipe = load(name, path)
    summary = (inspect.getdoc(recipe.function) or "").partition("\n")[0]
    print_help(Console(), asked.recipe or name, summary, recipe.config_class)


# ----------------------------------------------------------------------------------------------------- running it


def _run(order: Order) -> int:
    """Run it and tell how it ended; the exit code."""
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    display = Display(console, f"{_short(order.name)}, job {order.job_id}")
    with display:
        configure_log(os.environ.get("ADAPTIVE_LOG_LEVEL", "WARNING"))  # to the standard error that the display set
        state, error = run_job(order, display)
    if error is not None and state.state == "FAILED":
        _print_failure(errors, error, order)
    losses = read_losses(order.folder)
    _print_summary(console, state, display, losses)
    if any(len(curve) > 1 for curve in losses.values()):
        title = f"loss{PER_TOKEN}" if any(training.unit for training in display.trainings.values()) else "loss"
        print_curve(console, losses, title)
        write_png(order.folder / "loss.png", losses, title)
    console.print(f"[dim]job folder[/dim] {escape(str(order.folder))}", soft_wrap=True)
    for what, command in next_commands(order, state):
        console.print(f"[dim]{what}[/dim] {escape(command)}", soft_wrap=True)
    return {"COMPLETED": 0, "CANCELED": INTERRUPTED}.get(state.state, 1)


def _print_failure(console: Console, error: BaseException, order: Order) -> None:
    """An error of ours with its place in the recipe, any other with its traceback, without our frames."""
    if not isinstance(error, HarmoniaError):
        console.print(recipe_traceback(error).rstrip(), markup=False, soft_wrap=True)
        return
    print_error(console, error)
    if find_recipe(order.name) == order.path:
        return  # who runs a built-in recipe has not written it
    root = order.path if order.path.is_dir() else order.path.parent
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if Path(frame.filename).is_relative_to(root)]
    if places:
        at = places[-1]
        console.print(f"  in {at.filename}, line {at.lineno}: {at.line}", markup=False, style="dim", soft_wrap=True)


def _print_summary(console: Console, state: JobState, display: Display, losses: Series) -> None:
    colour, took = COLOURS[state.state], display.elapsed
    console.print(f"[{colour}]{state.state.lower()}[/{colour}] after {took}")
    for name, training in display.trainings.items():
        fell = "" if training.loss is None else f", loss {_fell(losses[name])}{training.unit}"
        tokens = f", {training.num_tokens:,} tokens" if training.num_tokens else ""
        console.print(f"  {escape(name)}: {training.steps} steps{fell}{tokens}")
    for name in display.validations:
        console.print(f"  {escape(name)} {_fell(losses[name])}")
    if display.dropped:
        console.print(f"  [yellow]{display.dropped_samples}[/yellow]; the log says why")
    for artifact in state.artifacts:
        what = f"{SCHEME}{artifact.name}" if artifact.kind == "model" else f"{artifact.kind} {artifact.name}"
        console.print(f"  saved [bold]{escape(what)}[/bold] {escape(artifact.file or '')}".rstrip(), soft_wrap=True)


def _fell(curve: Points) -> str:
    first, last = curve[0][1], curve[-1][1]
    return f"{first:.4g} to {last:.4g}" if len(curve) > 1 else f"{last:.4g}"


def _short(name: str) -> str:
    return Path(name).name
