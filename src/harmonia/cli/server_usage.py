"""`harmonia usage`: what the models of a server were used for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harmonia.cli.app import app
from harmonia.cli.server_access import PANEL, moment, server
from harmonia.sdk import Adaptive
from harmonia.sdk.aio.usage import Unit
from harmonia.sdk.inputs import UsageFilter
from harmonia.sdk.operations.usage import Used, UsedThen

HEADINGS = ("prompt tokens", "completion tokens", "answers")


class By(StrEnum):
    """What usage is told by."""

    model = "model"
    project = "project"
    user = "user"


class Every(StrEnum):
    """Units of time."""

    hour = "hour"
    day = "day"
    week = "week"
    month = "month"
    quarter = "quarter"
    year = "year"


@app.command(rich_help_panel=PANEL)
def usage(
    by: Annotated[By, typer.Option(help="What it is told by.")] = By.model,
    every: Annotated[Every | None, typer.Option(help="A line for each of these that had any, too.")] = None,
    since: Annotated[str, typer.Option(help="A date, a moment, or such as 'now - 1 week'.")] = "now - 30 days",
    until: Annotated[str, typer.Option(help="The same; it does not belong to the time.")] = "now",
    timezone: Annotated[str | None, typer.Option(help="Whose days count, such as Europe/Paris; UTC if none.")] = None,
    project: Annotated[
        list[str] | None, typer.Option("--project", "-p", help="Key or id; all that you may see unless given.")
    ] = None,
) -> None:
    """Tokens and answers by model, project or user, those of most tokens first. In a pipe, values between tabs.

    [bold]Example[/bold]

      harmonia usage --by user --every month --since 2026-01-01
    """
    wanted: UsageFilter = {"since": since, "until": until}
    if timezone is not None:
        wanted["timezone"] = timezone
    if project:
        wanted["projects"] = project
    unit: Unit = "whole" if every is None else every.value
    with server() as adaptive:
        rows = [row for name, used, then in _read(adaptive, by, unit, wanted) for row in _rows(name, used, then, every)]
    _show((by.value, *(("from",) if every else ()), *HEADINGS), rows)


def _read(
    adaptive: Adaptive, by: By, unit: Unit, wanted: UsageFilter
) -> Iterable[tuple[str, Used, Sequence[UsedThen]]]:
    if by is By.project:
        projects = {item.id: item.key for item in adaptive.projects.list()}
        for of_project in adaptive.usage.by_project(unit, wanted):
            yield projects.get(of_project.project_id, of_project.project_id), of_project, of_project.timeseries
    elif by is By.user:
        users = {item.id: item.email for item in adaptive.users.list()}
        for of_user in adaptive.usage.by_user(unit, wanted):
            yield users.get(of_user.user_id, of_user.user_id), of_user, of_user.timeseries
    else:
        for of_model in adaptive.usage.overall(unit, wanted).by_model:
            yield of_model.model.key, of_model, of_model.timeseries


def _rows(name: str, used: Used, then: Sequence[UsedThen], every: Every | None) -> Iterable[list[str]]:
    if every is None:
        yield [name, *_numbers(used)]
        return
    for part in then:
        if part.interactions:
            yield [name, moment(part.bucket_ts), *_numbers(part)]


def _numbers(used: Used) -> list[str]:
    return [str(used.prompt_tokens), str(used.completion_tokens), str(used.interactions)]


def _show(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console = Console()
    if not console.is_terminal:
        for row in rows:
            print("\t".join(row))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right" if heading in HEADINGS else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
