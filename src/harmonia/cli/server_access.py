"""How commands talk to a server, and how they show what it says: tables to people, bare ids to other programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harmonia.cli import server_completion
from harmonia.cli.reporting import reported
from harmonia.sdk import Adaptive

PANEL = "Commands for a server"
"""The heading under which help lists them."""

ProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project",
        "-p",
        help="Key or id; $DEFAULT_PROJECT or that of `harmonia config` unless given.",
        autocompletion=server_completion.projects,
    ),
]


@contextmanager
def server(project: str | None = None) -> Iterator[Adaptive]:
    """The server of the environment or the settings file. project: that of all calls inside."""
    with reported(), Adaptive(default_project=project) as adaptive:
        yield adaptive


def show(rows: Mapping[str, Sequence[object]], headings: Sequence[str]) -> None:
    """Rows by id: a table on a terminal, else one id a line."""
    console = Console()
    if not console.is_terminal:
        for row_id in rows:
            print(row_id)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows.values():
        table.add_row(*(escape(shown(value)) for value in row))
    console.print(table)


def show_one(row_id: str, fields: Mapping[str, object]) -> None:
    """One thing: its fields on a terminal, else its id."""
    console = Console()
    if not console.is_terminal:
        print(row_id)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, value in fields.items():
        table.add_row(f"[dim]{name}[/dim]", escape(shown(value)))
    console.print(table)


def shown(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(sorted(str(item) for item in value))
    return str(value)


def moment(milliseconds: int | None) -> str:
    """UTC milliseconds in the time of this machine."""
    if milliseconds is None:
        return ""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone():%Y-%m-%d %H:%M}"


def duration(milliseconds: int | None) -> str:
    """As hours, minutes and seconds."""
    if milliseconds is None:
        return ""
    minutes, seconds = divmod(milliseconds // 1000, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
