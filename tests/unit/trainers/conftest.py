"""A real worker with a tiny model."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from harmonia.client import HarmonyClient, TrainingModel, get_client
from harmonia.errors import WorkerLostError
from tests.integration.tiny_model import make_model
from tests.unit.trainers.recorders import MAX_BATCH_SIZE, Records, Stage

START_TIMEOUT_S = 90


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bare worker in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    registry = tmp_path_factory.mktemp("registry")
    command = [sys.executable, "-m", "harmonia.cli", "worker", "--port", str(port), "--registry", str(registry)]
    process = subprocess.Popen([*command, "--threads", "1"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        asyncio.run(_until_it_answers(f"ws://127.0.0.1:{port}", process))
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(40)


async def _until_it_answers(address: str, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            assert process.poll() is None, "the worker ended"
            try:
                async with await get_client(address):
                    return
            except WorkerLostError:
                continue


@pytest.fixture
async def client(address: str) -> AsyncIterator[HarmonyClient]:
    async with await get_client(address, num_gpus=1) as connected:
        yield connected


@pytest.fixture
async def policy(client: HarmonyClient, tiny: Path) -> TrainingModel:
    builder = client.model(str(tiny), kv_cache_len=8192, tokens_to_generate=16).with_adapter(rank=4)
    return await builder.spawn_train("policy", MAX_BATCH_SIZE)


@pytest.fixture
async def scorer(client: HarmonyClient, tiny: Path) -> TrainingModel:
    builder = client.model(str(tiny)).with_adapter(rank=4).into_scoring_model()
    return await builder.spawn_train("scorer", MAX_BATCH_SIZE)
