"""The context of the recipe that runs: what trainers report to and resume from where the recipe does not say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from harmonia.client.recipe.context import RecipeContext
from harmonia.client.recipe.notifiers import StageNotifier
from harmonia.client.recipe.stdout import StdoutJobNotifier

_running: ContextVar[RecipeContext | None] = ContextVar("running_recipe", default=None)


@contextmanager
def running(ctx: RecipeContext) -> Iterator[None]:
    """A recipe runs with this context; in tasks that it starts as well."""
    token = _running.set(ctx)
    try:
        yield
    finally:
        _running.reset(token)


def running_context() -> RecipeContext | None:
    """The context of the recipe that runs; None outside of one, as in a notebook."""
    return _running.get()


def default_stage(name: str) -> StageNotifier:
    """A stage of the running recipe's job; outside of a recipe one that prints."""
    ctx = running_context()
    job = StdoutJobNotifier() if ctx is None else ctx.job
    return job.stage_notifier(name)


def default_restore_data() -> dict[str, Any] | None:
    """What the running recipe's job resumes from, if it does."""
    ctx = running_context()
    return None if ctx is None else ctx.checkpoint_restore_data
