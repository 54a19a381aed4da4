"""The client of the worker protocol against a worker that misbehaves on purpose."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from harmonia.errors import DeadlineExceededError, InvalidRequestError, UnavailableError, WorkerLostError
from harmonia.protocol.client import PAUSE_AT_EVENTS, Stream, WorkerClient
from harmonia.protocol.messages import (
    Cancel,
    Delta,
    Describe,
    Description,
    Done,
    Embed,
    Embedded,
    Failed,
    Finished,
    Generate,
    Pause,
    Resume,
    TextPrompt,
    TokenPrompt,
)
from tests.unit.server.scripted import Script, ScriptedWorker


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[ScriptedWorker]:
    async with ScriptedWorker(tmp_path / "w.sock").serving() as running:
        yield running


@pytest.fixture
async def client(worker: ScriptedWorker) -> AsyncIterator[WorkerClient]:
    connected = await WorkerClient.connect(str(worker.path))
    yield connected
    await connected.close()


def ask(request_id: str = "a", n: int = 1) -> Generate:
    return Generate(id=request_id, model="tiny", prompt=TextPrompt(text="hi"), n=n)


async def everything(stream: Stream) -> list[Delta | Finished]:
    events = []
    while batch := await stream.next_events():
        events += batch
    return events


async def test_several_requests_share_a_stream(client: WorkerClient) -> None:
    events = await everything(client.generate(ask("a"), ask("b", n=2)))
    texts = {(event.id, event.index): "" for event in events if isinstance(event, Delta)}
    for event in events:
        if isinstance(event, Delta):
            texts[event.id, event.index] += event.text
    assert texts == {("a", 0): "Paris is nice", ("b", 0): "Paris is nice", ("b", 1): "Paris is nice"}
    assert [event.id for event in events if isinstance(event, Finished)] == ["a", "b"]
    assert client.num_open == 0


async def test_failure_comes_after_the_events_before_it(client: WorkerClient, worker: ScriptedWorker) -> None:
    worker.script = Script(failure=Failed(id="", code="invalid_request", message="no"), fail_after=1)
    stream = client.generate(ask())
    await worker.until(Generate)
    await asyncio.sleep(0.05)
    assert [event.text for event in await stream.next_events()] == ["Paris"]
    with pytest.raises(InvalidRequestError, match="no"):
        await stream.next_events()


async def test_cancel_ends_the_stream_and_tells_the_worker(client: WorkerClient, worker: ScriptedWorker) -> None:
    worker.script = Script(hang_after=1)
    stream = client.generate(ask())
    await stream.next_events()
    stream.cancel()
    assert await stream.next_events() == []
    assert await worker.until(Cancel) == Cancel(id="a")
    assert client.num_open == 0


async def test_slow_consumer_pauses_and_resumes_the_request(client: WorkerClient, worker: ScriptedWorker) -> None:
    worker.script = Script(words=("x",) * (PAUSE_AT_EVENTS + 50))
    stream = client.generate(ask())
    assert await worker.until(Pause) == Pause(id="a")
    assert len(await everything(stream)) == PAUSE_AT_EVENTS + 51
    assert len(worker.of(Pause)) == 1


async def test_paused_request_is_resumed_when_read(client: WorkerClient, worker: ScriptedWorker) -> None:
    worker.script = Script(words=("x",) * (PAUSE_AT_EVENTS + 5), hang_after=PAUSE_AT_EVENTS + 2)
    stream = client.generate(ask())
    await worker.until(Pause)
    await stream.next_events()
    assert await worker.until(Resume) == Resume(id="a")
    stream.cancel()


async def test_lost_connection_fails_everything(client: WorkerClient, worker: ScriptedWorker) -> None:
    worker.script = Script(hang_after=0)
    stream = client.generate(ask())
    await worker.until(Generate)
    for connection in list(worker.connections):
        connection.transport.abort()
    with pytest.raises(WorkerLostError):
        await stream.next_events()
    await client.closed.wait()
    with pytest.raises(WorkerLostError):
        client.generate(ask("b"))


async def test_abort_ends_open_requests_with_the_given_error(client: WorkerClient, worker: ScriptedWorker) -> None:
    worker.script = Script(hang_after=0)
    stream = client.generate(ask())
    client.abort(UnavailableError("closing"))
    with pytest.raises(UnavailableError, match="closing"):
        await stream.next_events()
    assert await worker.until(Cancel)


async def test_commands_have_typed_answers(client: WorkerClient) -> None:
    description = await client.request(Describe(id="d"), Description, 5)
    assert description.family == "llama"
    embedded = await client.request(Embed(id="e", model="tiny", prompts=(TextPrompt(text="a"),)), Embedded, 5)
    assert len(embedded.vectors) == 1


async def test_silent_worker_is_a_deadline(client: WorkerClient, worker: ScriptedWorker) -> None:
    worker.script = Script(hang_after=0)
    with pytest.raises(DeadlineExceededError, match="ADAPTIVE_HTTP_CLIENT__TIMEOUT_SECS"):
        await client.request(ask("z"), Done, 0.05)
    assert await worker.until(Cancel) == Cancel(id="z")


async def test_integers_beyond_the_wire_are_the_callers_fault(client: WorkerClient) -> None:
    with pytest.raises(InvalidRequestError, match="64 bits"):
        client.generate(Generate(id="a", model="tiny", prompt=TokenPrompt(token_ids=(2**70,))))
    assert client.num_open == 0


async def test_connecting_to_nothing_gives_up(tmp_path: Path) -> None:
    with pytest.raises(WorkerLostError, match="no worker answers"):
        await WorkerClient.connect(str(tmp_path / "none.sock"), timeout_s=0.1)
