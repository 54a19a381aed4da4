"""What the demonstration shows: where the server is, scores, answers side by side, the loss, and how to go on."""

from __future__ import annotations

import os
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from harmonia.cli.curves import print_curve, write_png
from harmonia.cli.demo_lesson import NUM_UNSEEN, Lesson, Row, num_right
from harmonia.cli.demo_talk import Turn
from harmonia.cli.first_models import EXAMPLE_TOKENS, PROJECT, curl, python
from harmonia.cli.running import EXAMPLE_QUESTION
from harmonia.errors import InvalidRequestError
from harmonia.sdk.operations.interactions import InteractionGroup
from harmonia.sdk.operations.jobs import Job

PUPIL = "barista"
"""Key of the adapter."""
_NUM_SHOWN = 4
_SHOWN_CHARS = 64
HARMONIA = os.path.relpath(Path(sys.executable).with_name("harmonia"))
"""The command, as people may type it here."""


def print_ready(console: Console, url: str, folder: Path, api_key: str, admin: str) -> None:
    """Where the server is, and who may use it."""
    console.print(f"[green]ready[/green] at [bold]{url}[/bold], data in {escape(str(folder))}", soft_wrap=True)
    console.print(f"API key of {escape(admin)}, shown only now: [bold]{api_key}[/bold]", soft_wrap=True)


def print_lesson(console: Console, lesson: Lesson, num_rows: int, job: Job) -> None:
    """What is about to be learned, by examples."""
    console.print(
        f"Now an adapter, [bold]{PUPIL}[/bold], learns to write down what people order in a café, from a data set of "
        f"{num_rows} orders and the lines that belong to them, in a job of the recipe [bold]sft[/bold], {job.id}:\n"
    )
    for row in lesson.rows[:_NUM_SHOWN]:
        console.print(Text.assemble("  ", row.order, (" → ", "dim"), (row.ticket, "green")), soft_wrap=True)
    console.print("\nMeanwhile both are asked for the line of an order that is not among them:\n")
    console.print(Text.assemble("  ", lesson.hard_row().order), soft_wrap=True)


def print_unseen(console: Console, rows: Sequence[Row], after: Sequence[str]) -> None:
    """How many orders with new drinks were answered to the letter."""
    unseen = num_right(rows[-NUM_UNSEEN:], after[-NUM_UNSEEN:])
    console.print(f"Of the {NUM_UNSEEN} held-out orders with drinks that no row of the lesson names, {unseen} were.\n")


def print_side_by_side(
    console: Console, base: str, rows: Sequence[Row], before: Sequence[Turn], after: Sequence[Turn]
) -> None:
    """Some held-out orders, with the base's and the adapter's answers."""
    table = Table("order", Column(escape(base), overflow="fold"), PUPIL, show_lines=True)
    step = len(rows) // _NUM_SHOWN
    for row, base_turn, turn in list(zip(rows, before, after, strict=True))[step - 1 :: step]:
        style = "green" if row.is_answered_by(turn.text) else "red"
        table.add_row(
            Text(row.order), Text(one_line(base_turn.text), style="dim"), Text(one_line(turn.text), style=style)
        )
    console.print(table)


def print_kept(console: Console, groups: Sequence[InteractionGroup], metric: str) -> None:
    """What the server keeps of the answers, and of the feedback on them in a metric."""
    console.print("\nThe server keeps every answer, and feedback on it: whether an order was answered to the letter.\n")
    table = Table("model", "interactions", "feedback", metric)
    for group in groups:
        scores = next((stats for stats in group.direct_scores_stats if stats.metric.key == metric), None)
        share = "" if scores is None or scores.average is None else f"{scores.average:.0%}"
        table.add_row(escape(str(group.key)), str(group.count), "" if scores is None else str(scores.scores), share)
    console.print(table)


def print_waits(console: Console, waits_s: Sequence[float]) -> None:
    """How long people waited for answers while it trained."""
    if waits_s:
        console.print(
            f"{len(waits_s)} answers were given by the base while it learned, after {statistics.median(waits_s):.1f} s "
            f"in the median and {max(waits_s):.1f} s at most.\n"
        )


def show_curve(console: Console, title: str, name: str, points: Sequence[tuple[float, float]], path: Path) -> None:
    """Something that changed step by step, here and as a picture."""
    print_curve(console, {name: points}, title)
    write_png(path, {name: points}, title)
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


class Made(NamedTuple):
    """The model that a job made."""

    key: str
    question: str
    """To try by hand."""
    job: str


def print_invitation(console: Console, url: str, api_key: str, base: str, made: Made | None, kept: Path | None) -> None:
    """How to go on: questions for the models from a shell and from Python, and commands. made: by a job, if there was
    one. kept: the data folder, if it stays."""
    model, question = (base, EXAMPLE_QUESTION) if made is None else (made.key, made.question)
    job = None if made is None else made.job
    said = {
        "in a shell": curl(url, model, api_key, question),
        "or with OpenAI's client": _with_openai(url, api_key, model, question),
        "or with Harmonia's": textwrap.dedent(python(url, model, f'"{api_key}"', question)),
        "look around": _commands(url, api_key, job),
    }
    if job is not None:
        said = {"ask the base": curl(url, base, api_key), **said}
    console.print("\nThe server keeps running. In another terminal:")
    for what, lines in said.items():
        console.print(f"\n[dim]# {what}[/dim]")
        console.print(lines, markup=False, highlight=False, soft_wrap=True)
    end = "the data goes with it" if kept is None else f"`{HARMONIA} up --data-dir {kept}` goes on"
    console.print(f"\nCtrl-C ends it; {end}.", markup=False, soft_wrap=True)


def _with_openai(url: str, api_key: str, model: str, question: str) -> str:
    return (
        "from openai import OpenAI  # pip install openai\n"
        f'client = OpenAI(base_url="{url}/v1", api_key="{api_key}")\n'
        "answer = client.chat.completions.create(\n"
        f'    model="{PROJECT}/{model}", temperature=0, max_tokens={EXAMPLE_TOKENS},\n'
        f'    messages=[{{"role": "user", "content": "{question}"}}],\n'
        ")\n"
        "print(answer.choices[0].message.content)"
    )


def _commands(url: str, api_key: str, job: str | None) -> str:
    lines = [
        f"export ADAPTIVE_BASE_URL={url} ADAPTIVE_API_KEY={api_key} DEFAULT_PROJECT={PROJECT}",
        f"{HARMONIA} models",
    ]
    if job is not None:
        lines += [f"{HARMONIA} jobs --server", f"{HARMONIA} job {job} --logs"]
    return "\n".join([*lines, f"{HARMONIA} launch sft -- --help  # teach it something of your own"])


def one_line(text: str) -> str:
    """The beginning of an answer."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 1]}…"
