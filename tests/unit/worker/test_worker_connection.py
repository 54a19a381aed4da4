"""A connection whose client reads slowly, or leaves."""

import asyncio
from types import SimpleNamespace

import pytest

from harmonia.protocol.messages import (
    ClientMessage,
    Delta,
    Describe,
    Done,
    Failed,
    Finished,
    Generate,
    Pause,
    Resume,
    Step,
    TextPrompt,
    Usage,
    WorkerMessage,
    decode_worker_message,
    encode,
)
from harmonia.worker import connection
from harmonia.worker.connection import Connection
from harmonia.worker.streams import Client, Work


class Socket:
    """A client that reads only while its gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.got: list[WorkerMessage] = []
        self.transport = SimpleNamespace(close=lambda: None)

    def __aiter__(self) -> "Socket":
        return self

    async def __anext__(self) -> bytes:
        data = await self.inbox.get()
        if data is None:
            raise StopAsyncIteration
        return data

    async def send(self, data: bytes) -> None:
        await self.gate.wait()
        self.got.append(decode_worker_message(data))


class Service:
    """Starts nothing, and notes what is asked of the engine."""

    def __init__(self) -> None:
        self.streams = self
        self.work: dict[str, Work] = {}
        self.notes: list[tuple[str, str]] = []

    async def begin(self, request: Generate, client: Client, arrival_s: float) -> Work:
        self.work[request.id] = Work(request.id, client, arrival_s)
        return self.work[request.id]

    async def answer(self, command: ClientMessage) -> Done:
        await asyncio.sleep(3600 if command.id == "slow" else 0)
        if command.id == "panic":
            raise BaseException("as libraries written in Rust break down")
        return Done(id=command.id)

    def hold(self, work: Work) -> None:
        self.notes.append(("hold", work.request_id))

    def release(self, work: Work) -> None:
        self.notes.append(("release", work.request_id))

    def cancel(self, work: Work) -> None:
        self.notes.append(("cancel", work.request_id))


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
async def opened():
    socket, service = Socket(), Service()
    connected = Connection(socket, service)
    running = asyncio.create_task(connected.run())
    for request_id in ("a", "b"):
        socket.inbox.put_nowait(encode(Generate(id=request_id, model="m", prompt=TextPrompt(text="x"))))
    await turns()
    yield socket, service, connected
    socket.inbox.put_nowait(None)
    await running


async def test_deltas_of_one_turn_leave_in_one_message_before_the_ends(opened) -> None:
    socket, _, connected = opened
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    for message in (Delta(id="a"), Finished(id="a", usage=usage), Delta(id="b")):
        connected.deliver(message)
    await turns()
    assert socket.got == [Step(deltas=(Delta(id="a"), Delta(id="b"))), Finished(id="a", usage=usage)]


async def test_a_slow_reader_holds_its_requests_until_it_caught_up(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    socket, service, connected = opened
    monkeypatch.setattr(connection, "MAX_PENDING", 5)
    socket.gate.clear()
    socket.inbox.put_nowait(encode(Pause(id="b")))
    for _ in range(20):
        connected.deliver(Delta(id="a"))
        await turns(2)
    assert sorted(service.notes) == [("hold", "a"), ("hold", "b"), ("hold", "b")]
    socket.inbox.put_nowait(encode(Generate(id="c", model="m", prompt=TextPrompt(text="x"))))
    await turns()
    assert service.notes[-1] == ("hold", "c")
    service.notes.clear()
    socket.gate.set()
    await turns()
    assert service.notes == [("release", "a"), ("release", "c")]
    assert sum(len(step.deltas) for step in socket.got) == 20
    socket.inbox.put_nowait(encode(Resume(id="b")))
    await turns()
    assert service.notes[-1] == ("release", "b")


async def test_a_client_that_leaves_cancels_everything(opened) -> None:
    socket, service, _ = opened
    socket.inbox.put_nowait(encode(Describe(id="slow")))
    socket.inbox.put_nowait(encode(Describe(id="slow")))
    await turns()
    socket.inbox.put_nowait(None)
    await turns()
    assert service.notes == [("cancel", "a"), ("cancel", "b")]
    assert socket.got == []


async def test_what_breaks_down_is_told(opened) -> None:
    socket, _, _ = opened
    socket.inbox.put_nowait(encode(Describe(id="panic")))
    socket.inbox.put_nowait(encode(Describe(id="fine")))
    await turns()
    assert [(type(message), message.id) for message in socket.got] == [(Failed, "panic"), (Done, "fine")]
