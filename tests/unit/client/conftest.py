"""A worker in this process, and a client of it."""

from collections.abc import AsyncIterator

import pytest

from harmonia.client import HarmonyClient, InferenceModel, TrainingModel, get_client
from tests.unit.client.small_worker import SmallWorker


@pytest.fixture
async def worker() -> AsyncIterator[SmallWorker]:
    async with SmallWorker().serving() as running:
        yield running


@pytest.fixture
async def client(worker: SmallWorker) -> AsyncIterator[HarmonyClient]:
    async with await get_client(worker.address, num_gpus=1) as connected:
        yield connected


@pytest.fixture
async def model(client: HarmonyClient) -> InferenceModel:
    return await client.model("/models/tiny").spawn_inference("judge")


@pytest.fixture
async def policy(client: HarmonyClient) -> TrainingModel:
    return await client.model("model_registry://tiny").with_adapter().spawn_train("policy", 64)
