"""A recipe's context without a worker."""

from pathlib import Path

import pytest

from harmonia.client.recipe.config import RecipeConfig
from harmonia.client.recipe.context import RecipeContext
from harmonia.client.recipe.stdout import StdoutJobNotifier


@pytest.fixture
def lone_ctx(tmp_path: Path) -> RecipeContext:
    """A context of a job that needs no worker: artifacts and data sets only."""
    context = RecipeContext(RecipeConfig(harmony_url="ws://127.0.0.1:1", working_dir=str(tmp_path)), _internal=True)
    context.job = StdoutJobNotifier("job-1")
    return context
