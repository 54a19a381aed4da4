"""A training that is stopped and resumed, with another worker, gives the weights of one that never stopped."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harmonia.client import HarmonyClient, StringThread, TrainingModel, get_client
from harmonia.client.recipe.stdout import StdoutJobNotifier
from harmonia.errors import InvalidRequestError, WorkerLostError
from harmonia.trainers import SFT, CheckpointManager, RecipeCallback

START_TIMEOUT_S = 90
STAGE = "SFT Training"


class StopAt(RecipeCallback):
    """Asks for an end when a share of the training is done, as an operator would; otherwise it only looks on."""

    def __init__(self, share: float | None = None, folder: Path | None = None) -> None:
        super().__init__(frequency=0.1)
        self.share, self.folder = share, folder
        self.looked: list[float] = []

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        self.looked.append(current_percentage)
        if self.folder and self.share is not None and current_percentage >= self.share:
            (self.folder / "GRACEFUL_EXIT").touch()
        return {}


@pytest.fixture(autouse=True)
def checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where they go."""
    monkeypatch.setenv("RECIPE_CHECKPOINTS_DIR", str(tmp_path / "checkpoints"))
    monkeypatch.delenv("HARMONY_NO_CHECKPOINTING", raising=False)
    CheckpointManager.reset_stage_counter()
    return tmp_path / "checkpoints" / "job" / "stage_0"


@asynccontextmanager
async def fresh_client(registry: Path) -> AsyncIterator[HarmonyClient]:
    """A client of a worker process that was just started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "harmonia.cli", "worker", "--port", str(port), "--registry", str(registry)]
    process = await asyncio.create_subprocess_exec(
        *command, "--threads", "1", env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        async with await _connect(f"ws://127.0.0.1:{port}", process) as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def _connect(address: str, process: asyncio.subprocess.Process) -> HarmonyClient:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            assert process.returncode is None, "the worker ended"
            try:
                return await get_client(address)
            except WorkerLostError:
                await asyncio.sleep(0.05)


def lessons() -> list[StringThread]:
    """As read from a file: new objects each time."""
    return [StringThread([("user", f"{n} + 1?"), ("assistant", f"{n + 1}.")], metadata={"row": n}) for n in range(10)]


async def spawn(client: HarmonyClient, tiny: Path, adapter: bool) -> TrainingModel:
    builder = client.model(str(tiny), kv_cache_len=1024)
    return await (builder.with_adapter(rank=4) if adapter else builder.with_adapter(False)).spawn_train("policy", 128)


async def train(model: TrainingModel, **changes: Any) -> SFT:
    """One sample a step: sums of floats do not depend on what ran together."""
    settings: dict[str, Any] = {
        "stage_notifier": StdoutJobNotifier("job").stage_notifier(STAGE),
        "callbacks": [StopAt()],
        "samples_per_batch": 1,
        "lr": 1e-3,
        "epochs": 2,
        "weight_decay": 0.01,
    }
    training = SFT(lessons(), model, **{**settings, **changes})
    await training.run()
    return training


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "full"])
async def test_resumed_weights_are_those_of_a_training_that_never_stopped(
    tmp_path: Path, tiny: Path, checkpoints: Path, adapter: bool
) -> None:
    registry = tmp_path / "registry"
    async with fresh_client(registry) as client:
        whole = await spawn(client, tiny, adapter)
        await train(whole, stage_notifier=StdoutJobNotifier("whole").stage_notifier(STAGE))
        await whole.save("whole")
        assert whole.get_optim_step() == 20
        await whole.dealloc()
        stopped = await train(await spawn(client, tiny, adapter), callbacks=[StopAt(0.7, checkpoints)])
        assert stopped.training_completion_percentage == pytest.approx(0.7), "in the second epoch"
    CheckpointManager.reset_stage_counter()
    async with fresh_client(registry) as client:
        resumed, looker = await spawn(client, tiny, adapter), StopAt()
        restore = json.loads((checkpoints / "checkpoint-70.json").read_text())
        assert restore["data"]["model_checkpoint_name"] == "checkpoints/job/checkpoint-70"
        await train(resumed, callbacks=[looker], checkpoint_restore_data=restore)
        assert resumed.get_optim_step() == 20 and min(looker.looked) == pytest.approx(0.8)
        await resumed.save("resumed")
    name = "adapter_model.safetensors" if adapter else "model.safetensors"
    expected, found = (load_file(registry / key / name) for key in ("whole", "resumed"))
    assert expected.keys() == found.keys() and len(found) > 10
    different = [key for key, value in expected.items() if not torch.equal(value, found[key])]
    assert not different


async def test_what_cannot_be_resumed_is_told_before_the_model_changes(
    tmp_path: Path, tiny: Path, checkpoints: Path
) -> None:
    async with fresh_client(tmp_path / "registry") as client:
        model = await spawn(client, tiny, adapter=True)
        await train(model, callbacks=[StopAt(0.2, checkpoints)])
        restore = json.loads((checkpoints / "checkpoint-20.json").read_text())
        before = await model.logprobs(lessons()[0])
        for change, says in (({"lr": 0.5}, "the hyperparameters"), ({"epochs": 3}, "the hyperparameters")):
            with pytest.raises(InvalidRequestError, match=f"is of another training: {says}"):
                await train(model, checkpoint_restore_data=restore, **change)
        restore["data"]["model_checkpoint_name"] = "checkpoints/job/checkpoint-21"
        with pytest.raises(InvalidRequestError, match="checkpoint-21"):
            await train(model, checkpoint_restore_data=restore)
        assert await model.logprobs(lessons()[0]) == before and model.get_optim_step() == 4
