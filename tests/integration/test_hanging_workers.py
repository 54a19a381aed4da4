"""Processes of a worker that hang: noticed, killed, started again; and those that only work for long."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from harmonia.config import EngineConfig, WorkerConfig
from harmonia.errors import WorkerLostError
from harmonia.fleet import LocalFleet
from harmonia.protocol.client import WorkerClient
from harmonia.protocol.fleet import WorkerState, WorkerStatus
from harmonia.protocol.messages import ChatPrompt, Describe, Description, Generate
from harmonia.protocol.sampling import SamplingParams
from harmonia.worker.link import Measure
from harmonia.worker.process import Device

SILENCE_S = 2.0
PATIENCE_S = 90.0
SLOW_DEVICE = """
import sys, time
from harmonia.engine.runtime import Runtime
from harmonia.worker import device

def work(self):
    time.sleep({seconds})  # as a library does that computes
    end = time.monotonic() + {seconds}
    while time.monotonic() < end:  # as Python does
        sum(range(1000))
    return {{"worked": True}}

Runtime.describe = Runtime.stats = work
sys.exit(device.main())
"""


@asynccontextmanager
async def slow_device(folder: Path, seconds: float) -> AsyncIterator[Device]:
    """A device process that works for long, twice: before it is ready, and whenever it is measured."""
    script = folder / "device.py"
    script.write_text(SLOW_DEVICE.format(seconds=seconds))
    config = WorkerConfig(engine=EngineConfig(device="cpu", num_threads=1), max_silence_s=SILENCE_S)
    device = await Device.start(config, (sys.executable, "-P", str(script)))
    try:
        yield device
    finally:
        await device.stop()


async def test_a_long_load_and_a_long_step_are_no_hanging(tmp_path: Path) -> None:
    async with slow_device(tmp_path, 1.4 * SILENCE_S) as device:
        assert await asyncio.wait_for(device.ready, PATIENCE_S) == {"worked": True}
        assert await device.ask(Measure) == {"worked": True}
        assert not device.lost.is_set()


async def test_a_device_process_that_hangs_is_killed_and_who_waits_is_told(tmp_path: Path) -> None:
    async with slow_device(tmp_path, 0.0) as device:
        await asyncio.wait_for(device.ready, PATIENCE_S)
        os.kill(device.pid, signal.SIGSTOP)
        with pytest.raises(WorkerLostError, match="device process hung: it did not answer for 2 s and was killed"):
            await asyncio.wait_for(device.ask(Measure), PATIENCE_S)
        with pytest.raises(WorkerLostError, match="hung"):
            await device.ask(Measure)


class Watched:
    """A fleet with one worker, and what becomes of it."""

    def __init__(self, fleet: LocalFleet, lines: list[str]) -> None:
        self.fleet, self.lines = fleet, lines

    @property
    def status(self) -> WorkerStatus:
        (status,) = self.fleet.statuses()
        return status

    async def ready(self, restarts: int) -> int:
        """The process id of the worker, once it was restarted so often and is ready."""
        async with asyncio.timeout(PATIENCE_S):
            while self.status.state is not WorkerState.READY or self.status.restarts < restarts:
                assert self.status.failure is None, self.status.failure
                await asyncio.sleep(0.02)
        assert self.status.pid is not None
        return self.status.pid


@pytest.fixture
async def watched(tiny: Path) -> AsyncIterator[Watched]:
    lines: list[str] = []
    fleet = LocalFleet(lines.append, max_silence_s=SILENCE_S, environment={"OMP_NUM_THREADS": "1"})
    await fleet.start(WorkerConfig(model=str(tiny), key="tiny", engine=EngineConfig(device="cpu", num_threads=1)))
    yield Watched(fleet, lines)
    await fleet.close()


def device_of(worker: int) -> int:
    """The device process of a worker."""
    (child,) = psutil.Process(worker).children()
    return child.pid


async def test_a_worker_that_hangs_is_started_again(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    before = await watched.ready(0)
    client = await WorkerClient.connect(watched.status.socket)
    os.kill(before, signal.SIGSTOP)
    with pytest.raises(WorkerLostError):
        await client.request(Describe(id="1"), Description, PATIENCE_S)
    await client.close()
    assert await watched.ready(1) != before
    assert "the worker hung: it did not answer for 2 s" in caplog.text
    assert "restarting in 0.5 s" in caplog.text
    assert not psutil.pid_exists(before)


async def test_a_hanging_device_process_ends_its_worker_too(watched: Watched) -> None:
    before = await watched.ready(0)
    client = await WorkerClient.connect(watched.status.socket)
    stopped = device_of(before)
    os.kill(stopped, signal.SIGSTOP)
    prompt = ChatPrompt(messages=({"role": "user", "content": "Hello"},))
    stream = client.generate(Generate(id="1", model="tiny", prompt=prompt, sampling=SamplingParams(max_tokens=2)))
    with pytest.raises(WorkerLostError):
        await asyncio.wait_for(stream.next_events(), PATIENCE_S)
    await client.close()
    after = await watched.ready(1)
    assert {before, stopped}.isdisjoint({after, device_of(after)})
    assert any("the device process hung" in line for line in watched.lines)
