"""What a shell offers where a command wants the name of something on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer

from harmonia.errors import HarmoniaError
from harmonia.sdk import Adaptive

_TIMEOUT_S = 5.0
Named = Iterable[tuple[str | None, str]]
"""Keys, and what they stand for."""


def recipes(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Keys of the recipes that the project may run."""
    return _offered(ctx, incomplete, lambda adaptive: ((item.key, item.name) for item in adaptive.recipes.list()))


def projects(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Keys of the projects that the caller may read."""
    return _offered(ctx, incomplete, lambda adaptive: ((item.key, item.name) for item in adaptive.projects.list()))


def compute_pools(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Keys of the compute pools."""
    return _offered(ctx, incomplete, lambda adaptive: ((item.key, item.name) for item in adaptive.compute_pools.list()))


def _offered(ctx: typer.Context, incomplete: str, listed: Callable[[Adaptive], Named]) -> list[tuple[str, str]]:
    try:
        with Adaptive(default_project=ctx.params.get("project"), timeout_s=_TIMEOUT_S, retries=0) as adaptive:
            return [(key, name) for key, name in listed(adaptive) if key is not None and key.startswith(incomplete)]
    except HarmoniaError:
        return []  # a shell that completes a word has no place for errors; the command itself will tell
