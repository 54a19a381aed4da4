"""A real worker with a tiny model in its registry, and a recipe's context on it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harmonia.client.recipe.config import RecipeConfig
from harmonia.client.recipe.context import RecipeContext
from harmonia.client.recipe.stdout import StdoutJobNotifier
from harmonia.models.adaptive_info import AdaptiveInfo, write_info
from tests.integration.tiny_model import make_adapter, make_model

START_TIMEOUT_S = 90


@dataclass
class Worker:
    """Where it listens, and where it looks for models."""

    address: str
    registry: Path


@contextmanager
def started(registry: Path) -> Iterator[Worker]:
    """`harmonia worker` in a process of its own."""
    command = [sys.executable, "-m", "harmonia.cli", "worker", "--port", "0", "--registry", str(registry)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "500"}
    output = registry.with_suffix(".log")
    with output.open("wb") as log, subprocess.Popen([*command, "--threads", "1"], env=env, stderr=log) as process:
        try:
            yield Worker(_address(output, process), registry)
        finally:
            process.terminate()
            process.wait(40)


def _address(output: Path, process: subprocess.Popen[bytes]) -> str:
    """What the worker prints once it is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if ready := re.search(r"ready at (ws://\S+),", output.read_text()):
            return ready.group(1)
        time.sleep(0.05)
    raise AssertionError(output.read_text())


@pytest.fixture(scope="session")
def parameters_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Its registry holds `tiny`, `tuned` with saved settings, `broken` with settings that make no sense, and `lora`."""
    registry = tmp_path_factory.mktemp("registry")
    make_model(registry / "tiny")
    for key, defaults in {
        "tuned": {"kv_cache_len": 256, "tokens_to_generate": 7, "tp": 1},
        "broken": {"kv_cache_len": "much"},
    }.items():
        write_info(make_model(registry / key), AdaptiveInfo(kind="model", defaults=defaults))
    make_adapter(registry / "lora")
    with started(registry) as worker:
        yield worker


@pytest.fixture
async def ctx(parameters_worker: Worker, tmp_path: Path) -> AsyncIterator[RecipeContext]:
    """A recipe's context on the worker."""
    config = RecipeConfig(harmony_url=parameters_worker.address, working_dir=str(tmp_path / "work"), job_id="job-1")
    async with RecipeContext.from_config(config) as context:
        yield context


@pytest.fixture
def lone_ctx(tmp_path: Path) -> RecipeContext:
    """A context of a job that needs no worker: artifacts and data sets only."""
    context = RecipeContext(RecipeConfig(harmony_url="ws://127.0.0.1:1", working_dir=str(tmp_path)), _internal=True)
    context.job = StdoutJobNotifier("job-1")
    return context
