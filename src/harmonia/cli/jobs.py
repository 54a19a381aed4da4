"""`harmonia jobs`, and where jobs are kept: one folder each."""

from __future__ import annotations

import fcntl
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
from harmonia.cli.curves import Series, is_validation, loss_of_step
from harmonia.cli.server_jobs import list_jobs
from harmonia.cli.tables import print_error
from harmonia.client.recipe import JobState, read_journal, read_metrics
from harmonia.client.recipe.journal_state import MetricsRecord
from harmonia.errors import HarmoniaError, InvalidRequestError

OPTIM_STEP = "optim_step"
"""The stage under which a job's metrics hold what the optimizer returned; `model` in them names the model."""
_SHOWN_ID = 13
"""Its beginning is the time in milliseconds."""
_DIED = "DIED"
COLOURS = {
    "COMPLETED": "green",
    "FAILED": "red",
    "CANCELED": "yellow",
    "RUNNING": "cyan",
    "PENDING": "dim",
    _DIED: "red",
}


@app.command()
def jobs(
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="Show this many, the newest first.")] = 20,
    ids: Annotated[bool, typer.Option("--ids", help="Print ids alone, as `run --resume` takes them.")] = False,
    on_server: Annotated[bool, typer.Option("--server", "-s", help="List those of the server instead.")] = False,
    project: Annotated[str | None, typer.Option("--project", "-p", help="With --server: those of one project.")] = None,
) -> None:
    """List the jobs that `harmonia run` ran on this machine, or with --server those that a server runs.

    Each has a folder in ~/.local/share/harmonia/jobs, or in $HARMONIA_JOBS: job.json, metrics.jsonl, loss.png and
    what the recipe made. Removing the folder forgets the job; models that it saved stay in the registry.

    A job that DIED ended without a word: its process was killed. `harmonia run --resume JOB` continues that, a FAILED
    and a CANCELED one, if it had a checkpoint.
    """
    if on_server or project is not None:
        list_jobs(project, last)
        return
    console = Console()
    found = sorted(_folders(), key=lambda folder: folder.name)[::-1]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("job", "state", "recipe", "started", "took", "last loss"):
        table.add_column(heading, no_wrap=heading != "recipe", overflow="ellipsis")
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
    folders = _folders()
    matches = [folder for folder in folders if job and _matches(folder.name, job)]
    if len(matches) == 1:
        return matches[0]
    problem = f"{len(matches)} jobs begin or end with {job!r}" if matches else f"no job {job!r} in {jobs_folder()}"
    raise InvalidRequestError(f"{problem}; `harmonia jobs` lists them")


def short_id(folder: Path) -> str:
    """What `find_job` finds the job in a folder by, as short as it can be; the folder where it is somewhere else."""
    if folder.parent != jobs_folder():
        return str(folder)
    name, others = folder.name, [other.name for other in _folders() if other.name != folder.name]
    lengths = range(min(_SHOWN_ID, len(name)), len(name))
    unique = (length for length in lengths if not any(_matches(other, name[:length]) for other in others))
    return name[: next(unique, len(name))]


def read_losses(folder: Path) -> Series:
    """The curves of a job from its folder, by name: the loss of each model in training, and that of validation.

    Losses are per token where the steps tell how many there were. Steps of the optimizer count from 1; a validation
    stands at the step after which it was made. Of steps that a resumed job made again, the last count.
    """
    records = read_metrics(folder)
    has_steps = any(record.stage == OPTIM_STEP for record in records)
    curves: dict[str, dict[float, float]] = {}
    step: float = 0
    for record in records:
        if record.stage == OPTIM_STEP:
            curve = curves.setdefault(str(record.metrics.get("model", "loss")), {})
            step = record.metrics.get("optim_step", len(curve) + 1)
            curve[step] = _number(loss_of_step(record.metrics)[0])
            continue
        for name, loss in _logged_losses(record, not has_steps).items():
            curve = curves.setdefault(name, {})
            if not is_validation(name):
                step = max(step, len(curve) + 1)
            curve[step if is_validation(name) else len(curve) + 1] = loss
    return {name: sorted(curves[name].items()) for name in sorted(curves, key=is_validation)}


def _logged_losses(record: MetricsRecord, with_training: bool) -> dict[str, float]:
    losses = {name: value for name, value in record.metrics.items() if name.rpartition("/")[2] == "loss"}
    return {name: _number(value) for name, value in losses.items() if with_training or is_validation(name)}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _folders() -> list[Path]:
    return [file.parent for file in jobs_folder().glob("*/job.json")]


def _matches(job_id: str, part: str) -> bool:
    return job_id.startswith(part) or job_id.endswith(part)


def _state(folder: Path, state: JobState) -> str:
    """The state; DIED if the journal says that the job goes on, and no process holds its folder."""
    if state.state not in ("PENDING", "RUNNING"):
        return state.state
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return state.state
    finally:
        os.close(descriptor)
    return _DIED


def _row(folder: Path, state: JobState) -> list[str]:
    curves = [curve for name, curve in read_losses(folder).items() if not is_validation(name)]
    loss = f"{curves[0][-1][1]:.4g}" if curves else ""
    name = _state(folder, state)
    began = state.started_at or state.ended_at  # one that was refused never started
    started = "" if began is None else f"{_time(began).astimezone():%Y-%m-%d %H:%M}"
    return [
        escape(short_id(folder)),
        f"[{COLOURS[name]}]{name}[/{COLOURS[name]}]",
        escape(Path(state.recipe).name),
        started,
        "" if name == _DIED else _took(state),
        loss,
    ]


def _took(state: JobState) -> str:
    if state.started_at is None:
        return ""
    end = datetime.now(UTC) if state.ended_at is None else _time(state.ended_at)
    return str(end - _time(state.started_at)).partition(".")[0]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
