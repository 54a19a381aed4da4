"""The demonstration's training: an adapter learns the lesson while people go on asking the server."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from harmonia.cli.demo_lesson import Row
from harmonia.cli.demo_talk import People
from harmonia.client import ModelBuilder, TrainingModel
from harmonia.client.recipe.notifiers import ForwardingStage
from harmonia.client.recipe.stdout import StdoutJobNotifier
from harmonia.trainers import SFT, Logger, RecipeCallback

PUPIL = "barista"
"""Name of the adapter: people ask for it while it trains and afterwards."""
RANK = 16
LEARNING_RATE = 1.5e-3
ROWS_PER_STEP = 8
MAX_BATCH_SIZE = 512
ANSWER_TOKENS = 32
"""Enough for the longest line, and to see what the base makes of an order."""
_ASK_EVERY = 0.1
_SHOWN_CHARS = 64

Losses = list[tuple[float, float]]
"""Steps, counted from 1, and their losses per token of the answers."""


async def spawn_pupil(builder: ModelBuilder) -> TrainingModel:
    """A new adapter on the model that is being served."""
    return await builder.with_adapter(rank=RANK).spawn_train(PUPIL, max_batch_size=MAX_BATCH_SIZE)


async def examine(people: People, model: str, rows: Sequence[Row]) -> list[str]:
    """What a model answers to the orders, all of them asked at once."""
    return list(await asyncio.gather(*(people.ask(model, row.order, ANSWER_TOKENS) for row in rows)))


async def teach(model: TrainingModel, rows: Sequence[Row], asking: Asking, console: Console) -> Losses:
    """One epoch over the rows, while `asking` asks; the loss of each step."""
    columns = (TextColumn("learning"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        board = Board(progress, math.ceil(len(rows) / ROWS_PER_STEP))
        try:
            await SFT(
                [row.thread() for row in rows],
                model,
                logger=board,
                stage_notifier=_QuietStage(StdoutJobNotifier("demo"), "lesson"),
                callbacks=[asking],
                lr=LEARNING_RATE,
                samples_per_batch=ROWS_PER_STEP,
            ).run()
            await asking.finish()
        finally:
            await asking.stop()
    return board.losses


class Board(Logger):
    """A bar with one tick per step, and the losses."""

    def __init__(self, progress: Progress, num_steps: int) -> None:
        self.losses: Losses = []
        self._progress = progress
        self._task = progress.add_task("", total=num_steps, loss="")

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Take in a step; there is no loss if all of its samples were refused."""
        if "loss" not in metrics:
            return
        loss = metrics["loss"] * metrics["num_samples"] / metrics["num_tokens"]
        self.losses.append((len(self.losses) + 1, loss))
        self._progress.update(self._task, advance=1, loss=f"loss {loss:.3f}")


class Asking(RecipeCallback):
    """Asks the base and the pupil the same question, now and then and without holding the training up.

    An answer that differs from the last one is printed, with the number of steps done when the question was asked.
    """

    def __init__(self, people: People, model: TrainingModel, base: str, row: Row, console: Console) -> None:
        super().__init__(_ASK_EVERY)
        self.waits_s: list[float] = []
        """How long people waited for each answer."""
        self._people = people
        self._model = model
        self._base = base
        self._row = row
        self._console = console
        self._tasks: list[asyncio.Task[None]] = []
        self._heard: dict[str, str] = {}

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """Begin to ask."""
        step = self._model.get_optim_step()
        self._tasks += [asyncio.create_task(self._ask(name, step)) for name in (self._base, PUPIL)]
        return {}

    async def finish(self) -> None:
        """Wait for the answers; raises what went wrong with one."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Wait no longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, name: str, step: int) -> None:
        started = time.perf_counter()
        answer = await self._people.ask(name, self._row.order, ANSWER_TOKENS)
        self.waits_s.append(time.perf_counter() - started)
        if self._heard.get(name) != answer:
            self._heard[name] = answer
            when = "base" if name == self._base else f"step {step}"
            mark = "   right" if self._row.is_answered_by(answer) else ""
            self._console.print(Text.assemble((f"{when:>9}  ", "dim"), one_line(answer), (mark, "green")))


class _QuietStage(ForwardingStage):
    """Says nothing of progress: the board shows it."""

    def report_progress(
        self,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Sequence[str] | None = None,
    ) -> None:
        """Nothing."""


def one_line(text: str) -> str:
    """The beginning of an answer."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 1]}…"
