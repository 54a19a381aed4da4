"""Models to train, on a real worker."""

from pathlib import Path

import pytest

from harmonia.client import HarmonyClient, TrainingModel
from tests.unit.trainers.recorders import MAX_BATCH_SIZE, Records, Stage


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture(autouse=True)
def no_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests want none; those that do unset this."""
    monkeypatch.setenv("HARMONY_NO_CHECKPOINTING", "1")


@pytest.fixture
async def policy(client: HarmonyClient, tiny: Path) -> TrainingModel:
    builder = client.model(str(tiny), kv_cache_len=8192, tokens_to_generate=16).with_adapter(rank=4)
    return await builder.spawn_train("policy", MAX_BATCH_SIZE)


@pytest.fixture
async def scorer(client: HarmonyClient, tiny: Path) -> TrainingModel:
    builder = client.model(str(tiny)).with_adapter(rank=4).into_scoring_model()
    return await builder.spawn_train("scorer", MAX_BATCH_SIZE)
