"""Connecting, closing, and what happens when the line breaks."""

import asyncio
import gc
import subprocess
import sys

import pytest

from harmonia.client import HarmonyClient, InferenceModel, StringThread, TrainingModel, connect, get_client
from harmonia.errors import HarmoniaError, InvalidRequestError, UnavailableError, WorkerLostError
from harmonia.protocol import client as protocol_client
from harmonia.protocol.client import WorkerClient
from harmonia.protocol.instances import Dealloc, Hello, OptimStep, Spawn, Train
from harmonia.protocol.messages import Delta, Generate, TextPrompt
from tests.unit.client.small_worker import SmallWorker

ASK = StringThread([("user", "Capital of France?")])
LESSON = StringThread([("user", "q"), ("assistant", "a")])


@pytest.mark.parametrize("address", ["127.0.0.1:9100", "http://127.0.0.1:9100", "ws://", "ws://host:nine", ""])
async def test_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(HarmoniaError, match="ws://host:port"):
        await get_client(address, 1)


async def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(WorkerLostError, match=r"ws://127\.0\.0\.1:1: .*harmonia worker"):
        await get_client("ws://127.0.0.1:1", 1)


async def test_client_waits_for_a_worker_that_is_starting(worker: SmallWorker) -> None:
    late = SmallWorker()
    async with late.serving():
        port = late.port
    connecting = asyncio.create_task(get_client(f"ws://127.0.0.1:{port}"))
    await asyncio.sleep(0.1)
    async with late.serving(), await connecting as client:
        assert client.session_id()


async def test_hello_says_who_comes(worker: SmallWorker) -> None:
    async with await get_client(worker.address, None, "key", ttl_after_disconnect_s=5, name="lesson"):
        (hello,) = worker.of(Hello)
        (connection,) = worker.connections
    assert (hello.name, hello.ttl_after_disconnect_s, len(hello.client) >= 16) == ("lesson", 5.0, True)
    assert connection.request and connection.request.headers["Authorization"] == "Bearer key"


async def test_closing_frees_the_models(worker: SmallWorker) -> None:
    with await get_client(worker.address) as client:
        model = await client.model("/models/tiny").spawn_inference("judge")
    await client.close()
    assert worker.models == {}
    with pytest.raises(UnavailableError, match="closed"):
        await model.generate(ASK)


async def test_models_are_freed_with_their_last_object(worker: SmallWorker, client: HarmonyClient) -> None:
    model = await client.model("/models/tiny").spawn_inference("judge")
    greedy = model.temperature(0.0)
    del model
    gc.collect()
    await greedy.generate(ASK)
    del greedy
    again = await client.model("/models/tiny").spawn_inference("judge")
    assert (await again.generate(ASK)).last_content() == "Paris"


async def test_deallocated_models_raise(model: InferenceModel, worker: SmallWorker) -> None:
    warm = model.temperature(0.5)
    await model.dealloc()
    assert worker.models == {}
    await warm.dealloc()
    for call in (warm.generate(ASK), warm.logprobs(LESSON), warm.tokenize("a"), warm.embed([1])):
        with pytest.raises(InvalidRequestError, match="'judge' was deallocated"):
            await call


async def test_commands_survive_a_broken_line_and_count_once(policy: TrainingModel, worker: SmallWorker) -> None:
    worker.held = (Train, OptimStep)
    calls = [asyncio.create_task(policy.train_language_modelling(LESSON)) for _ in range(20)]
    await worker.until(Train, 20)
    step = asyncio.create_task(policy.optim_step(0.1, 0.0, 1.0, False))
    await worker.until(OptimStep)
    worker.cut()
    await worker.until(Hello, 2)
    worker.go_on.set()
    await asyncio.gather(*calls)
    assert (await step)["num_samples"] == 20
    assert len(set(worker.executed)) == len(worker.executed)
    first, second = worker.of(Hello)
    assert first.client == second.client


async def test_calls_made_while_the_line_is_broken_wait_for_it(policy: TrainingModel, worker: SmallWorker) -> None:
    worker.cut()
    await asyncio.gather(*(policy.train_language_modelling(LESSON) for _ in range(3)))
    assert (await policy.optim_step(0.1, 0.0, 1.0, False))["num_samples"] == 3


async def test_generation_without_a_token_is_asked_again(model: InferenceModel, worker: SmallWorker) -> None:
    worker.held = (Generate,)
    asked = asyncio.create_task(model.generate(ASK))
    await worker.until(Generate)
    worker.cut()
    await worker.until(Generate, 2)
    worker.go_on.set()
    assert (await asked).last_content() == "Paris"


async def test_generation_that_had_begun_ends_with_the_line(worker: SmallWorker) -> None:
    worker.held = (Generate,)
    link = await WorkerClient.connect(worker.address, hello=Hello(id="h", client="a secret of this test"))
    stream = link.generate(Generate(id="g", model="judge", prompt=TextPrompt(text="hi")))
    assert [event.text for event in await stream.next_events() if isinstance(event, Delta)] == ["Well, "]
    worker.cut()
    with pytest.raises(WorkerLostError, match="so far is lost"):
        await stream.next_events()
    await worker.until(Hello, 2)
    assert len(worker.of(Generate)) == 1
    await link.close()


async def test_message_that_no_worker_takes(model: InferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_client, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(InvalidRequestError, match="at most 1000"):
        await model.detokenize(range(2000))
    assert await model.detokenize([104]) == "h"


async def test_worker_that_ends_the_connection_for_good(model: InferenceModel, worker: SmallWorker) -> None:
    (connection,) = worker.connections
    await connection.close(1009, "too big")
    with pytest.raises(WorkerLostError, match="too big"):
        await model.generate(ASK)
    assert len(worker.of(Hello)) == 1


async def test_worker_that_forgot_the_client_ends_everything(model: InferenceModel, worker: SmallWorker) -> None:
    worker.held = (Generate,)
    asked = asyncio.create_task(model.generate(ASK))
    await worker.until(Generate)
    worker.clients.clear()
    worker.cut()
    with pytest.raises(WorkerLostError, match="spawn them again"):
        await asked
    with pytest.raises(WorkerLostError):
        await model.generate(ASK)


async def test_worker_that_stays_away(worker: SmallWorker) -> None:
    gone = SmallWorker()
    async with gone.serving():
        client = await get_client(gone.address, ttl_after_disconnect_s=0.2)
        model = await client.model("/models/tiny").spawn_inference("judge")
    with pytest.raises(WorkerLostError, match="no worker answers"):
        await model.generate(ASK)
    await client.close()


async def test_cancelled_spawn_leaves_nothing(client: HarmonyClient, worker: SmallWorker) -> None:
    worker.held = (Spawn,)
    spawning = asyncio.create_task(client.model("/models/tiny").spawn_inference("judge"))
    await worker.until(Spawn)
    spawning.cancel()
    await asyncio.gather(spawning, return_exceptions=True)
    worker.held = ()
    worker.go_on.set()
    assert (await worker.until(Dealloc)).instance == "judge"


def test_importing_the_client_loads_no_compute_library() -> None:
    code = "import sys, harmonia.client; print({'torch', 'transformers', 'tokenizers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


async def test_another_event_loop_is_told_apart(model: InferenceModel) -> None:
    def elsewhere() -> None:
        asyncio.run(model.generate(ASK))

    with pytest.raises(InvalidRequestError, match="made in another event loop"):
        await asyncio.to_thread(elsewhere)
    assert await model.generate(ASK)


async def test_models_of_providers_are_refused_without_their_keys(client: HarmonyClient) -> None:
    for describe in (client.model, client.describe):
        with pytest.raises(InvalidRequestError, match="provider 'openai' are not supported") as caught:
            await describe("openai://gpt?api_key=secret")  # type: ignore[misc]
        assert "secret" not in str(caught.value)
    with pytest.raises(InvalidRequestError, match="path of the model is empty"):
        client.model("")
