"""A recipe's context on the bare worker, and models in its registry."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harmonia.client.recipe.config import RecipeConfig
from harmonia.client.recipe.context import RecipeContext
from harmonia.models.adaptive_info import AdaptiveInfo, write_info
from tests.integration.tiny_model import make_adapter, make_model


@pytest.fixture(scope="session")
def registry(registry: Path) -> Path:
    """With `tiny`, `tuned` with saved settings, `broken` with settings that make no sense, and `lora`."""
    make_model(registry / "tiny")
    for key, defaults in {
        "tuned": {"kv_cache_len": 256, "tokens_to_generate": 7, "tp": 1},
        "broken": {"kv_cache_len": "much"},
    }.items():
        write_info(make_model(registry / key), AdaptiveInfo(kind="model", defaults=defaults))
    make_adapter(registry / "lora")
    return registry


@pytest.fixture
async def ctx(address: str, registry: Path, tmp_path: Path) -> AsyncIterator[RecipeContext]:
    """The context of a job."""
    config = RecipeConfig(harmony_url=address, working_dir=str(tmp_path / "work"), job_id="job-1")
    async with RecipeContext.from_config(config) as context:
        yield context
