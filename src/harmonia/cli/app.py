"""The application to which every command adds itself."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="harmonia",
    help="One runtime that trains and serves language models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
