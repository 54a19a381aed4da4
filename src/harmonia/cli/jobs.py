"""`harmonia jobs`, and where jobs are kept: one folder each."""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harmonia.cli.app import app
from harmonia.cli.curves import Series
from harmonia.cli.tables import print_error
from harmonia.client.recipe import JobState, read_journal, read_metrics
from harmonia.client.recipe.journal_state import MetricsRecord
from harmonia.errors import HarmoniaError, InvalidRequestError

OPTIM_STEP = "optim_step"
"""The stage under which a job's metrics hold what the optimizer returned; `model` in them names the model."""
_SHOWN_ID = 12
"""Of the end, which is random; the beginning is the time."""
COLOURS = {"COMPLETED": "green", "FAILED": "red", "CANCELED": "yellow", "RUNNING": "cyan", "PENDING": "dim"}


@app.command()
def jobs(
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="Show this many, the newest first.")] = 20,
    ids: Annotated[bool, typer.Option("--ids", help="Print ids alone, as `run --resume` takes them.")] = False,
) -> None:
    """List the jobs that `harmonia run` ran on this machine.

    Each has a folder in ~/.local/share/harmonia/jobs, or in $HARMONIA_JOBS: job.json, metrics.jsonl, loss.png and
    what the recipe made. Removing the folder forgets the job; models that it saved stay in the registry.
    """
    console = Console()
    found = sorted((file.parent for file in jobs_folder().glob("*/job.json")), key=lambda folder: folder.name)[::-1]
    table = Table("job", "state", "recipe", "started", "took", "last loss", box=None, padding=(0, 2, 0, 0))
    for folder in found[:last]:
        try:
            state = read_journal(folder)
        except HarmoniaError as error:
            print_error(Console(stderr=True), error)
            continue
        if ids:
            console.print(state.job_id, markup=False, highlight=False, soft_wrap=True)
        else:
            table.add_row(*_row(folder, state))
    if not found:
        Console(stderr=True).print(f"no jobs in {escape(str(jobs_folder()))}; `harmonia run RECIPE` makes the first")
    elif not ids:
        console.print(table)


def jobs_folder() -> Path:
    """Where jobs are: `$HARMONIA_JOBS`, else `harmonia/jobs` in `$XDG_DATA_HOME`, `~/.local/share` unless set."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(os.environ.get("HARMONIA_JOBS") or f"{data}/harmonia/jobs").expanduser().absolute()


def find_job(job: str) -> Path:
    """The folder of a job that is named by its id, the beginning or the end of it, or its folder."""
    for folder in (jobs_folder() / job, Path(job).expanduser().absolute()):
        if (folder / "job.json").is_file():
            return folder
    folders = [file.parent for file in jobs_folder().glob("*/job.json")]
    matches = [folder for folder in folders if job and (folder.name.startswith(job) or folder.name.endswith(job))]
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} jobs begin or end with {job!r}" if matches else f"no job {job!r} in {jobs_folder()}"
    raise InvalidRequestError(f"{problem}; `harmonia jobs` lists them")


def read_losses(folder: Path) -> Series:
    """The curves of a job from its folder, by name: the loss of each model in training, and that of validation.

    Steps of the optimizer count from 1; a validation stands at the step after which it was made.
    """
    records = read_metrics(folder)
    has_steps = any(record.stage == OPTIM_STEP for record in records)
    curves: dict[str, list[tuple[float, float]]] = {}
    step = 0
    for record in records:
        losses = _step_losses(record) if record.stage == OPTIM_STEP else _logged_losses(record, not has_steps)
        for name, loss in losses.items():
            curve = curves.setdefault(name, [])
            if not _is_validation(name):
                step = max(step, len(curve) + 1)
            curve.append((step if _is_validation(name) else len(curve) + 1, loss))
    return {name: curves[name] for name in sorted(curves, key=_is_validation)}


def _step_losses(record: MetricsRecord) -> dict[str, float]:
    return {str(record.metrics.get("model", "loss")): _number(record.metrics.get("loss"))}


def _logged_losses(record: MetricsRecord, with_training: bool) -> dict[str, float]:
    losses = {name: value for name, value in record.metrics.items() if name.rpartition("/")[2] == "loss"}
    return {name: _number(value) for name, value in losses.items() if with_training or _is_validation(name)}


def _is_validation(name: str) -> bool:
    return name.startswith("val")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _row(folder: Path, state: JobState) -> list[str]:
    curves = [curve for name, curve in read_losses(folder).items() if not _is_validation(name)]
    loss = f"{curves[0][-1][1]:.4g}" if curves else ""
    colour = COLOURS[state.state]
    started = "" if state.started_at is None else f"{_time(state.started_at).astimezone():%Y-%m-%d %H:%M}"
    return [
        state.job_id,
        f"[{colour}]{state.state}[/{colour}]",
        escape(_short(state.recipe)),
        started,
        _took(state),
        loss,
    ]


def _short(recipe: str) -> str:
    """The last two parts of a path."""
    return "/".join(Path(recipe).parts[-2:])


def _took(state: JobState) -> str:
    if state.started_at is None:
        return ""
    end = datetime.now(UTC) if state.ended_at is None else _time(state.ended_at)
    return str(end - _time(state.started_at)).partition(".")[0]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
