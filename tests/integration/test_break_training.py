"""Ways in which training was broken from outside: what one client does ends its own call and nobody else's."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harmonia.client import HarmonyClient, StringThread, TrainingModel, get_client
from harmonia.errors import HarmoniaError, InvalidRequestError, WorkerLostError
from harmonia.protocol.messages import Done, UnloadAdapter

START_TIMEOUT_S = 90
PATIENCE_S = 10
ASK = StringThread([("user", "What is blue?")])
LESSON = StringThread([("user", "What is blue?"), ("assistant", "The sky.")])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def address(registry: Path) -> Iterator[str]:
    """A bare worker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "harmonia.cli", "worker", "--port", str(port), "--registry", str(registry)]
    process = subprocess.Popen([*command, "--threads", "1"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(40)


async def connected(address: str) -> HarmonyClient:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                return await get_client(address)
            except WorkerLostError:
                await asyncio.sleep(0.1)


@pytest.fixture
async def client(address: str) -> AsyncIterator[HarmonyClient]:
    async with await connected(address) as one:
        yield one


@pytest.fixture
async def bystander(address: str, tiny: Path) -> AsyncIterator[TrainingModel]:
    """A model of another client, which must not notice anything."""
    async with await connected(address) as other:
        builder = other.model(str(tiny), kv_cache_len=8192, tokens_to_generate=400)
        yield await builder.with_adapter(rank=2).spawn_train("bystander", 256)


async def spawn(client: HarmonyClient, tiny: Path, name: str = "policy", rank: int = 4) -> TrainingModel:
    return await client.model(str(tiny), kv_cache_len=8192).with_adapter(rank=rank).spawn_train(name, 256)


async def goes_on(model: TrainingModel) -> None:
    await model.train_language_modelling(LESSON)
    assert (await model.optim_step(1e-3))["num_samples"] == 1


# ------------------------------------------------------------------------------------------ calls without an answer


async def test_generations_end_when_their_model_is_freed(client: HarmonyClient, tiny: Path) -> None:
    model = await client.model(str(tiny), kv_cache_len=8192, tokens_to_generate=400).spawn_inference("alone")
    answers = [asyncio.create_task(model.generate(ASK)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await model.dealloc()  # the last instance on its backbone
    ends = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), PATIENCE_S)
    assert all(isinstance(end, HarmoniaError | StringThread) for end in ends)


async def test_a_save_is_answered_though_its_model_is_freed_next(client: HarmonyClient, tiny: Path) -> None:
    for pause_s in (0.001, 0.003, 0.006, 0.01, 0.015):  # the file may be on its way, or not yet begun
        model = await spawn(client, tiny)
        saving = asyncio.create_task(model.save("last-words", inference_only=False))
        await asyncio.sleep(pause_s)
        await model.dealloc()
        (end,) = await asyncio.wait_for(asyncio.gather(saving, return_exceptions=True), PATIENCE_S)
        assert end == "last-words" or isinstance(end, HarmoniaError)


# --------------------------------------------------------------------------------- bad input that ends the device


async def test_a_save_with_bad_details(client: HarmonyClient, bystander: TrainingModel, tiny: Path) -> None:
    model = await spawn(client, tiny)
    with pytest.raises((InvalidRequestError, TypeError)):
        await model.save("odd", draft_target=5)  # type: ignore[arg-type]
    await goes_on(bystander)


@pytest.mark.parametrize("meta", ["{}", '{"num_steps": "three"}'])
async def test_a_load_of_a_broken_optimizer_state(
    client: HarmonyClient, bystander: TrainingModel, tiny: Path, registry: Path, meta: str
) -> None:
    model = await spawn(client, tiny)
    await model.save("broken", inference_only=False)
    (registry / "broken" / "optimizer.json").write_text(meta)
    with pytest.raises(InvalidRequestError):
        await model.load("model_registry://broken")
    await goes_on(bystander)


async def test_a_load_of_an_empty_path(client: HarmonyClient, bystander: TrainingModel, tiny: Path) -> None:
    model = await spawn(client, tiny)
    with pytest.raises(InvalidRequestError):
        await model.load("")
    await goes_on(bystander)


def no_rank(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:0] if "lora_A" in name else tensor[:, :0].contiguous()


def no_dimensions(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.tensor(1.0)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        pytest.param({"rank_pattern": {"(": 4}}, None, id="pattern"),
        pytest.param({"r": 0}, no_rank, id="rank-0"),
        pytest.param({}, no_dimensions, id="no-dimensions"),
    ],
)
async def test_a_broken_adapter(
    client: HarmonyClient,
    bystander: TrainingModel,
    tiny: Path,
    tiny_adapters: tuple[Path, ...],
    tmp_path: Path,
    settings: dict[str, object],
    change: Callable[[str, torch.Tensor], torch.Tensor] | None,
) -> None:
    folder = Path(shutil.copytree(tiny_adapters[0], tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": str(tiny), **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if change is not None:
        tensors = load_file(folder / "adapter_model.safetensors")
        changed = {name: change(name, tensor) for name, tensor in tensors.items()}
        save_file(changed, folder / "adapter_model.safetensors")
    with pytest.raises(InvalidRequestError):
        await client.model(str(folder)).spawn_train("broken", 128)
    await goes_on(bystander)


async def test_a_batch_beyond_all_memory(client: HarmonyClient, bystander: TrainingModel, tiny: Path) -> None:
    with pytest.raises(HarmoniaError) as refused:
        await client.model(str(tiny)).with_adapter(rank=4).spawn_train("vast", 2**62)
    assert not isinstance(refused.value, WorkerLostError)
    await goes_on(bystander)


# ------------------------------------------------------------------------------------------------- wrong outcomes


async def test_a_score_reads_what_the_step_before_it_made(client: HarmonyClient, tiny: Path) -> None:
    model = await spawn(client, tiny)
    before = await model.logprobs(LESSON)
    calls = [model.train_language_modelling(LESSON), model.optim_step(1e-2), model.logprobs(LESSON)]
    *_, score = await asyncio.gather(*calls)  # they are sent in this order
    assert score == pytest.approx(await model.logprobs(LESSON), abs=1e-4)
    assert score > before + 1


async def test_a_model_behind_a_link(client: HarmonyClient, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny)
    for number, path in enumerate((tmp_path / "link", f"{tiny.parent}/../{tiny.parent.name}/{tiny.name}")):
        model = await client.model(str(path), kv_cache_len=2048).with_adapter(rank=4).spawn_train(f"m{number}", 64)
        await goes_on(model)


async def test_nobody_else_can_unload_a_model(client: HarmonyClient, bystander: TrainingModel) -> None:
    session = client._session
    with pytest.raises(HarmoniaError):
        await session.ask(UnloadAdapter(id=session.new_id(), key="bystander"), Done)
    await goes_on(bystander)


async def test_a_shared_backbone_gives_the_length_that_was_asked_for(client: HarmonyClient, tiny: Path) -> None:
    builder = client.model(str(tiny), kv_cache_len=2048)
    short = await builder.max_seqlen(64).spawn_inference("short")
    long = StringThread([("user", "x"), ("assistant", "y" * 200)])
    model = await builder.max_seqlen(512).with_adapter(rank=4).spawn_train("long", 400)
    await model.train_language_modelling(long)
    loss = (await model.optim_step(0.0))["loss"]
    assert await model.logprobs(long) == pytest.approx(-loss, rel=1e-4)
    assert short is not None


async def test_an_alpha_that_is_no_number(client: HarmonyClient, tiny: Path) -> None:
    for alpha in (float("nan"), float("inf")):
        with pytest.raises(InvalidRequestError, match="alpha"):
            await client.model(str(tiny)).with_adapter(rank=4, alpha=alpha).spawn_train("odd", 64)


# ------------------------------------------------------------------------------------------------ everyone else


async def test_a_huge_sample_stops_nobody(client: HarmonyClient, bystander: TrainingModel, tiny: Path) -> None:
    model = await spawn(client, tiny)
    brief, gaps = bystander.max_gen_len(1), []
    huge = StringThread([("user", "x " * (2 << 20)), ("assistant", "y")])
    refused = asyncio.create_task(model.train_language_modelling(huge))
    while not refused.done():
        begun = time.monotonic()
        await brief.generate(ASK)
        gaps.append(time.monotonic() - begun)
    assert isinstance(refused.exception(), HarmoniaError)
    assert max(gaps, default=0.0) < 1.0
