"""What the demonstration shows at its end: scores, answers side by side, the loss, and how to ask for yourself."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from harmonia.cli.curves import print_curve, write_png
from harmonia.cli.demo_lesson import NUM_UNSEEN, Lesson, Row, num_right
from harmonia.cli.demo_talk import snippet
from harmonia.cli.demo_training import PUPIL, Losses, one_line
from harmonia.cli.running import curl
from harmonia.errors import InvalidRequestError

_NUM_SHOWN = 4
_TITLE = "loss per token"


def print_lesson(console: Console, lesson: Lesson, num_rows: int) -> None:
    """What is about to be learned, by examples."""
    console.print(
        f"Now an adapter, [bold]{PUPIL}[/bold], learns to write down what people order in a café, from {num_rows} "
        "orders and the lines that belong to them:\n"
    )
    for row in lesson.rows[:_NUM_SHOWN]:
        console.print(Text.assemble("  ", row.order, (" → ", "dim"), (row.ticket, "green")), soft_wrap=True)
    console.print("\nMeanwhile the server is asked for the line of an order that is not among them:\n")
    console.print(Text.assemble("  ", lesson.hard_row().order), soft_wrap=True)


def print_scores(console: Console, rows: Sequence[Row], before: Sequence[str], after: Sequence[str]) -> None:
    """How many held-out orders were answered to the letter."""
    unseen = num_right(rows[-NUM_UNSEEN:], after[-NUM_UNSEEN:])
    console.print(
        f"\nHeld-out orders answered to the letter: [bold]{num_right(rows, before)}[/bold] of {len(rows)} before, "
        f"[bold]{num_right(rows, after)}[/bold] of {len(rows)} after; of {NUM_UNSEEN} with drinks that no row of the "
        f"lesson names, {unseen}.\n"
    )


def print_side_by_side(
    console: Console, base: str, rows: Sequence[Row], before: Sequence[str], after: Sequence[str]
) -> None:
    """Some held-out orders, with the base's and the adapter's answers."""
    table = Table("order", Column(escape(base), overflow="fold"), PUPIL, show_lines=True)
    step = len(rows) // _NUM_SHOWN
    for row, base_answer, answer in list(zip(rows, before, after, strict=True))[step - 1 :: step]:
        style = "green" if row.is_answered_by(answer) else "red"
        table.add_row(Text(row.order), Text(one_line(base_answer), style="dim"), Text(one_line(answer), style=style))
    console.print(table)


def print_waits(console: Console, waits_s: Sequence[float]) -> None:
    """How long people waited for answers while it trained."""
    console.print(
        f"{len(waits_s)} answers were given while it learned, after {statistics.median(waits_s):.1f} s in the median "
        f"and {max(waits_s):.1f} s at most."
    )


def show_losses(console: Console, losses: Losses, path: Path) -> None:
    """The curve here and as a picture."""
    print_curve(console, {_TITLE: losses}, "The lesson")
    write_png(path, {_TITLE: losses}, "The lesson")
    console.print(f"the same as a picture: {escape(str(path))}", soft_wrap=True)


def picture_place(wanted: Path | None) -> Path:
    """The place that was asked for, else `harmonia/demo/loss.png` in the user's folder for data.

    InvalidRequestError, before anything is trained, if no picture can be written there.
    """
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    path = (wanted or Path(data) / "harmonia" / "demo" / "loss.png").expanduser().absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise InvalidRequestError(
            f"cannot write {path}: {error.strerror or error}; --picture names another place", field="picture"
        ) from error
    return path


def print_invitation(console: Console, url: str, models: dict[str, str]) -> None:
    """Commands to go on with, for each model its question."""
    console.print("\nThe server keeps running; Ctrl-C stops it. Ask it yourself:")
    for model, question in models.items():
        console.print(f"\n[dim]# {escape(model)}[/dim]")
        console.print(curl(url, model, (), question), markup=False, highlight=False, soft_wrap=True)
    console.print("\nor from Python:\n")
    model, question = list(models.items())[-1]
    console.print(snippet(url, model, question), markup=False, highlight=False, soft_wrap=True)
