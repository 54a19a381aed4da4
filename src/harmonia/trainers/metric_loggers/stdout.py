"""Metrics on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid
from rich.text import Text

from harmonia.client.table import Table
from harmonia.trainers.metric_loggers.base import Logger, Metric, by_kind

_PROGRESS = "completion_percentage"
_SAME_AS_PROGRESS = "training/completion_percentage"
_SHOWN_ROWS = 5
_SHOWN_CHARS = 200


class StdoutLogger(Logger):
    """Prints one line per record: its number, how much of the training is done, then names and values. The first rows
    of each table follow. Through `console`, by default one on standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._step = 0

    def __call__(self, logs: Mapping[str, Metric]) -> None:
        """Print one record."""
        record = by_kind({key: value for key, value in logs.items() if key != _SAME_AS_PROGRESS})
        self._step += 1
        line = Text(f"{self._step:4}", style="dim")
        if (done := record.numbers.pop(_PROGRESS, None)) is not None:
            line.append(f" {done:6.1%}", style="cyan")
        for key, value in (record.numbers | record.texts).items():
            line.append(f"  {key} ", style="dim").append(_short(value), style="not dim")
        self._console.print(line, soft_wrap=True)
        for key, table in record.tables.items():
            self._console.print(first_rows(key, table))

    def log_config(self, config: dict[str, Any]) -> None:
        """Print a table of what is set."""
        grid = Grid("setting", "value", title="training")
        for key, value in _settings(config):
            grid.add_row(Text(key), Text(str(value)))
        self._console.print(grid)

    def get_state(self) -> dict[str, Any]:
        """How many records there were."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Count on from there."""
        self._step = int(state.get("step", 0))


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those inside others as `model.path`; what is None or empty is not set."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        elif value is not None and value not in ((), []):
            yield prefix + key, value


def _short(value: int | float | str) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


def first_rows(title: str, table: Table) -> Grid:
    """What a terminal shows of a table: the first five rows, long cells cut, and how many rows there are more."""
    headers, rows = table.export()
    more = len(rows) - _SHOWN_ROWS
    grid = Grid(*map(escape, headers), title=escape(title), caption=f"… and {more} more rows" if more > 0 else None)
    for row in rows[:_SHOWN_ROWS]:
        grid.add_row(*(Text(_short(str(cell))) for cell in row))
    return grid
