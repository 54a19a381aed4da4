"""Workers under bad luck and bad clients."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from harmonia.errors import InvalidRequestError, UnavailableError, WorkerLostError
from harmonia.protocol.messages import (
    Cancel,
    Describe,
    Generate,
    Pause,
    Resume,
    Step,
    TextPrompt,
    decode_worker_message,
)
from harmonia.protocol.sampling import SamplingParams
from harmonia.worker.listen import MAX_MESSAGE_BYTES
from tests.integration.worker_client import FREE, Caller, WorkerProcess, adapters, start_worker

HI = TextPrompt(text="Hi there")


@pytest.fixture(scope="module")
def worker(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """For what it must survive."""
    with start_worker(tiny, tmp_path_factory.mktemp("worker")) as running:
        yield running.wait_ready()


async def begin(caller: Caller, request_id: str = "long", **fields: object) -> int:
    """Start a long answer and wait for its first tokens; how many came."""
    await caller.send(Generate(id=request_id, model="tiny", prompt=HI, sampling=FREE, **fields))
    message = await caller.receive()
    assert isinstance(message, Step)
    return sum(len(delta.token_ids) for delta in message.deltas)


async def tokens_until_silence(caller: Caller) -> int:
    """Tokens that come until nothing does for half a second, or the connection is closed."""
    count = 0
    with contextlib.suppress(TimeoutError, ConnectionClosed):
        while isinstance(message := decode_worker_message(await asyncio.wait_for(caller.socket.recv(), 0.5)), Step):
            count += sum(len(delta.token_ids) for delta in message.deltas)
    return count


def gone(pid: int) -> bool:
    """No such process, or only its entry in the table is left."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while not gone(pid):
        assert time.monotonic() < deadline, "the process lives on"
        time.sleep(0.02)


async def test_disconnect_and_cancel_free_everything(worker: WorkerProcess) -> None:
    async with worker.connect() as other, worker.connect() as caller:
        await begin(caller, n=4)
        await caller.socket.close()
        await other.until_quiet()
    async with worker.connect() as other, worker.connect() as caller:
        await begin(caller, n=4)
        await caller.send(Cancel(id="long"))
        await caller.send(Cancel(id="nobody"))
        await other.until_quiet()


async def test_nothing_follows_a_cancel(worker: WorkerProcess) -> None:
    async with worker.connect() as caller:
        await begin(caller)
        await caller.send(Cancel(id="long"))
        await caller.send(Describe(id="d"))
        while isinstance(message := await caller.receive(), Step):
            assert {delta.id for delta in message.deltas} == {"long"}
        assert message.id == "d"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(caller.socket.recv(), 0.3)


async def test_pause_stops_and_resume_goes_on(worker: WorkerProcess) -> None:
    async with worker.connect() as caller:
        alone = await caller.say(prompt=HI)
        seen = await begin(caller, "p")
        await caller.send(Pause(id="p"))
        seen += await tokens_until_silence(caller)
        assert seen < 400
        cpu = worker.device.cpu_times()
        await asyncio.sleep(0.5)
        later = worker.device.cpu_times()
        assert later.user + later.system - cpu.user - cpu.system < 0.1  # a held sequence does not spin
        await caller.send(Resume(id="p"))
        rest = (await caller.gather("p"))["p"]
        assert len(alone.ids()) - seen == len(rest.ids())
        assert alone.ids()[seen:] == rest.ids()


async def test_a_client_that_does_not_read_is_held(worker: WorkerProcess) -> None:
    async with worker.connect() as slow, worker.connect() as other:
        sampling = SamplingParams(temperature=0, ignore_eos=True, logprobs=20)
        for number in range(40):
            await slow.send(Generate(id=f"s{number}", model="tiny", prompt=HI, sampling=sampling))
        slow.socket.transport.pause_reading()
        started = time.monotonic()
        assert len((await other.say(prompt=HI)).ids()) == 400
        assert time.monotonic() - started < 60
        slow.socket.transport.resume_reading()
        ends = await slow.gather(*(f"s{number}" for number in range(40)))
        assert {len(end.ids()) for end in ends.values()} == {504}


@pytest.mark.parametrize("garbage", [b"\xc1", b"", b"{}", b"\x81" * 10, b"\x93\x01\x02\x03", b"\x91" * 100_000, "text"])
async def test_garbage_closes_only_its_connection(worker: WorkerProcess, garbage: bytes | str) -> None:
    async with worker.connect() as other, worker.connect() as caller:
        await begin(other)
        await caller.socket.send(garbage)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(caller.socket.recv(), 30)
        assert closed.value.rcvd.code == 1007
        assert (await other.gather("long"))["long"].reason == "length"


async def test_wrong_shape_is_answered_by_id(worker: WorkerProcess) -> None:
    async with worker.connect() as caller:
        for body in ({"type": "Dance", "id": "x"}, {"type": "Generate", "id": "x", "model": 3}):
            await caller.socket.send(msgspec.msgpack.encode(body))
            error = (await caller.gather("x"))["x"].error
            assert isinstance(error, InvalidRequestError)
            assert "malformed" in error.message


async def test_too_large_message_and_raw_bytes_disturb_nobody(worker: WorkerProcess) -> None:
    async with worker.connect() as other, worker.connect() as caller:
        caller.socket.transport.write(b"\x82\xff" + (MAX_MESSAGE_BYTES + 1).to_bytes(8) + b"mask")
        with pytest.raises(ConnectionClosed) as closed:
            await caller.socket.recv()
        assert closed.value.rcvd.code == 1009
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(worker.socket)
            raw.sendall(os.urandom(1000) + b"\r\n\r\n")
        assert len((await other.say(prompt=HI)).ids()) == 400


async def test_idle_worker_sleeps(worker: WorkerProcess) -> None:
    async with worker.connect():
        processes = [psutil.Process(worker.process.pid), worker.device]
        before = [process.cpu_times() for process in processes]
        await asyncio.sleep(2)
        after = [process.cpu_times() for process in processes]
        assert sum(b.user + b.system - a.user - a.system for a, b in zip(before, after, strict=True)) <= 0.02


async def test_killed_device_fails_requests_and_ends_the_worker(tiny: Path, tmp_path: Path) -> None:
    with start_worker(tiny, tmp_path) as running:
        async with running.wait_ready().connect() as caller:
            await begin(caller, n=2)
            running.device.kill()
            assert isinstance((await caller.gather("long"))["long"].error, WorkerLostError)
        assert running.wait() == 1
        assert not Path(running.socket).exists()


async def test_killed_io_process_takes_the_device_along(tiny: Path, tmp_path: Path) -> None:
    with start_worker(tiny, tmp_path) as running:
        async with running.wait_ready().connect() as caller:
            await begin(caller)
            device = running.device.pid
            running.process.kill()
            await tokens_until_silence(caller)
            with pytest.raises(ConnectionClosed):
                await caller.socket.recv()
        await asyncio.to_thread(wait_gone, device)


async def test_sigterm_ends_requests_cleanly(tiny: Path, tiny_adapters: tuple[Path, ...], tmp_path: Path) -> None:
    with start_worker(tiny, tmp_path, adapters=adapters(tiny_adapters[0])) as running:
        async with running.wait_ready().connect() as caller:
            device = running.device.pid
            await begin(caller)
            running.process.send_signal(signal.SIGTERM)
            assert isinstance((await caller.gather("long"))["long"].error, UnavailableError)
        assert running.wait() == 0
        assert gone(device)
        assert "HARMONIA-FATAL" not in running.stderr.read_text()


def last_line(running: WorkerProcess) -> dict:
    word, text = running.stderr.read_text().splitlines()[-1].split(" ", 1)
    assert word == "HARMONIA-FATAL"
    return json.loads(text)


def test_what_cannot_be_loaded_is_the_last_line(tiny: Path, tmp_path: Path) -> None:
    with start_worker(tmp_path / "nothing here", tmp_path) as running:
        assert running.wait() == 3
        fatal = last_line(running)
        assert fatal["code"] == "unknown_model"
        assert "nothing here" in fatal["message"]


def test_adapter_that_cannot_be_loaded_is_fatal_too(tiny: Path, tmp_path: Path) -> None:
    with start_worker(tiny, tmp_path, adapters=adapters(tmp_path / "no-adapter")) as running:
        assert running.wait() == 3
        assert "no-adapter" in last_line(running)["message"]


def test_device_killed_while_loading_is_fatal(tiny: Path, tmp_path: Path) -> None:
    with start_worker(tiny, tmp_path) as running:
        while not psutil.Process(running.process.pid).children():
            time.sleep(0.01)
        running.device.kill()
        assert running.wait() == 3
        assert last_line(running)["code"] == "worker_lost"
