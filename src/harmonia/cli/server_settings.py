"""`harmonia config` and `harmonia set-api-key`: where the server is, and who calls."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harmonia.cli.app import app
from harmonia.cli.reporting import reported
from harmonia.cli.server_access import PANEL
from harmonia.errors import InvalidRequestError
from harmonia.sdk.settings import (
    DEFAULT_BASE_URL,
    VARIABLES,
    Settings,
    from_environment,
    from_file,
    load_settings,
    save_settings,
    settings_path,
)

_SHOWN_OF_KEY = 6


@app.command(rich_help_panel=PANEL)
def config(
    base_url: Annotated[str | None, typer.Option(help="Address of the server, such as http://127.0.0.1:9000.")] = None,
    project: Annotated[str | None, typer.Option("--project", "-p", help="Project of commands that name none.")] = None,
) -> None:
    """Show where the server is and who calls, and where that is said; options write it to the settings file.

    The environment goes before the file: ADAPTIVE_BASE_URL or ADAPTIVE_URL, ADAPTIVE_API_KEY, DEFAULT_PROJECT.
    $HARMONIA_CONFIG names another file.
    """
    with reported():
        if base_url is not None or project is not None:
            new = Settings(base_url=base_url, default_project=project)
            new.require_address()
            save_settings(new.over(from_file()))
        _print_settings()


@app.command("set-api-key", rich_help_panel=PANEL)
def set_api_key(
    key: Annotated[str | None, typer.Argument(help="Better left out: it is asked for, or read from a pipe.")] = None,
) -> None:
    """Keep an API key in the settings file, which only you can read."""
    with reported():
        given = key or _asked_key()
        if not given or any(character.isspace() for character in given):
            raise InvalidRequestError("an API key is one word", field="key")
        path = save_settings(Settings(api_key=given).over(from_file()))
        Console(stderr=True).print(f"kept in {escape(str(path))}", soft_wrap=True)
        if from_environment().api_key not in (None, given):
            Console(stderr=True).print("[yellow]ADAPTIVE_API_KEY is set to another key and goes before it[/yellow]")


def _asked_key() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("API key", hide_input=True, err=True)).strip()
    return sys.stdin.readline().strip()


def _print_settings() -> None:
    settings, environment, file = load_settings(), from_environment(), from_file()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, variables in VARIABLES.items():
        value = getattr(settings, name)
        if getattr(environment, name):
            source = " or ".join(variables)
        elif getattr(file, name):
            source = str(settings_path())
        else:
            value, source = (DEFAULT_BASE_URL, "default") if name == "base_url" else ("-", "not set")
        shown = f"{value[:_SHOWN_OF_KEY]}..." if name == "api_key" and value != "-" else value
        table.add_row(name, escape(shown), f"[dim]{escape(source)}[/dim]")
    Console(soft_wrap=True).print(table)
