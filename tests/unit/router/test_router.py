"""The router follows a fleet and picks replicas."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from harmonia.errors import InvalidRequestError, UnavailableError, UnknownModelError, WorkerLostError
from harmonia.protocol.client import Stream
from harmonia.protocol.fleet import WorkerState
from harmonia.protocol.messages import Generate, LoadAdapter, TextPrompt
from harmonia.router import Router
from harmonia.router.router import CROWDED_FROM
from tests.unit.server.scripted import Script, ScriptedWorker, StillFleet


@pytest.fixture
async def routed(tmp_path: Path) -> AsyncIterator[tuple[Router, StillFleet, list[ScriptedWorker]]]:
    """Two replicas of one model, both ready."""
    fleet = StillFleet()
    router = Router(fleet, timeout_s=5)
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(ScriptedWorker(tmp_path / f"{n}").serving()) for n in range(2)]
        for number, worker in enumerate(workers):
            fleet.set(f"r{number}", WorkerState.READY, worker.path)
        await router.start()
        stack.push_async_callback(router.close)
        await ready(router)
        yield router, fleet, workers


async def ready(router: Router) -> None:
    async with asyncio.timeout(5):
        while not router.ready:
            await asyncio.sleep(0.005)


def ask(request_id: str, model: str = "tiny") -> Generate:
    return Generate(id=request_id, model=model, prompt=TextPrompt(text="hi"))


async def test_least_loaded_first_then_sticky(routed: tuple[Router, StillFleet, list[ScriptedWorker]]) -> None:
    router, _, workers = routed
    for worker in workers:
        worker.script = Script(hang_after=0)
    first = router.pick("tiny", "talk")
    stream = router.generate(first, ask("a"))
    other = router.pick("tiny", "another talk")
    assert other is not first
    assert router.pick("tiny", "talk") is first
    stream.cancel()


async def test_a_session_leaves_a_worker_that_is_crowded(
    routed: tuple[Router, StillFleet, list[ScriptedWorker]],
) -> None:
    router, _, workers = routed
    for worker in workers:
        worker.script = Script(hang_after=0)
    first = router.pick("tiny", "talk")
    streams: list[Stream] = []
    while router.pick("tiny", "talk") is first:
        streams.append(router.generate(first, ask(f"r{len(streams)}")))
        assert len(streams) < 100
    assert len(streams) > CROWDED_FROM
    for stream in streams:
        stream.cancel()
    assert router.pick("tiny", "talk") is not first, "its cache is where it went"


async def test_unknown_model_names_the_known_ones(routed: tuple[Router, StillFleet, list[ScriptedWorker]]) -> None:
    with pytest.raises(UnknownModelError, match="tiny"):
        routed[0].pick("huge")


async def test_restarted_worker_is_found_again_with_its_adapters(
    routed: tuple[Router, StillFleet, list[ScriptedWorker]],
) -> None:
    router, fleet, (worker, _) = routed
    await router.load_adapter("law", "/adapters/law")
    worker.models = worker.models[:1]
    fleet.set("r0", WorkerState.LOADING, worker.path)
    async with asyncio.timeout(5):
        while router.ready:
            await asyncio.sleep(0.005)
    assert router.pick("tiny").replica == "r1"
    fleet.set("r0", WorkerState.READY, worker.path)
    await ready(router)
    assert LoadAdapter(id=worker.of(LoadAdapter)[-1].id, key="law", path="/adapters/law") in worker.received
    assert {replica for replica, _ in [(model.key, None) for model in router.models()]} == {"tiny", "law"}


async def test_an_adapter_for_a_worker_that_is_gone_is_an_error(
    routed: tuple[Router, StillFleet, list[ScriptedWorker]],
) -> None:
    router, fleet, (worker, _) = routed
    fleet.set("r0", WorkerState.LOADING, worker.path)
    async with asyncio.timeout(5):
        while router.find("r0") is not None:
            await asyncio.sleep(0.005)
    with pytest.raises(WorkerLostError, match="'law' is gone"):
        await router.load_adapter("law", "/adapters/law", "tiny", "r0")
    assert (await router.load_adapter("law", "/adapters/law", "tiny")).key == "law"


async def test_broken_connection_is_made_again(routed: tuple[Router, StillFleet, list[ScriptedWorker]]) -> None:
    router, _, (worker, _) = routed
    for connection in list(worker.connections):
        connection.transport.abort()
    await asyncio.sleep(0.05)
    await ready(router)


async def test_an_adapter_leaves_a_worker_after_its_answers_where_another_has_it(
    routed: tuple[Router, StillFleet, list[ScriptedWorker]],
) -> None:
    router, _, workers = routed
    for worker in workers:
        worker.script = Script(hang_after=0)
    await router.load_adapter("law", "/adapters/law", only="r0")
    assert router.withdraw(["law"], "r0") == ["law"], "nobody else has it"
    await router.load_adapter("law", "/adapters/law", only="r1")
    stream = router.generate(router.pick("tiny"), ask("a"))
    assert router.withdraw(["law"], "r0") == ["law"], "it writes an answer of another model"
    router.withdraw([], "r0")
    both = [router.generate(router.find(name), ask(name, "law")) for name in ("r0", "r1")]  # type: ignore[arg-type]
    assert router.withdraw(["law"], "r0") == []
    assert {router.pick("law").replica for _ in range(4)} == {"r1"}
    assert router.pick("law", avoid=["r1"]).replica == "r0"
    both[0].cancel()
    assert router.withdraw(["law"], "r0") == ["law"]
    for open_stream in (stream, both[1]):
        open_stream.cancel()


async def test_adapter_keys_are_unique(routed: tuple[Router, StillFleet, list[ScriptedWorker]]) -> None:
    with pytest.raises(InvalidRequestError, match="loaded already"):
        await routed[0].load_adapter("tiny", "/x")


async def test_nothing_ready_is_unavailable() -> None:
    fleet = StillFleet()
    fleet.set("r0", WorkerState.LOADING)
    with pytest.raises(UnavailableError, match="still loading") as caught:
        Router(fleet).pick("tiny")
    assert caught.value.details["retry_after_s"] == 2
