"""What commands say beside their results: what went wrong, and the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from harmonia import log
from harmonia.cli.tables import print_error
from harmonia.errors import HarmoniaError, InvalidRequestError


@contextmanager
def reported() -> Iterator[None]:
    """What goes wrong inside, told on standard error; the command then ends with code 1."""
    try:
        yield
    except HarmoniaError as error:
        print_error(Console(stderr=True), error)
        raise typer.Exit(1) from error


def configure_log(level: str | None = None) -> None:
    """Begin to log, see `harmonia.log.configure`; InvalidRequestError for a level or a form that there is not."""
    try:
        log.configure(level)
    except ValueError as error:
        raise InvalidRequestError(f"ADAPTIVE_LOG_LEVEL or ADAPTIVE_LOG_FORMAT: {error}", field="log") from error
