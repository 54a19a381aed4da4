"""Processes as a fleet starts them: one that cannot be started, one whose log nobody takes, one that finds no end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from harmonia.config import EngineConfig, WorkerConfig
from harmonia.errors import UnavailableError
from harmonia.fleet import LocalFleet
from harmonia.fleet.files import inspect_model
from harmonia.protocol.fleet import WorkerState, WorkerStatus

PATIENCE_S = 90.0


@asynccontextmanager
async def bare(fleet: LocalFleet, place: str = "") -> AsyncIterator[Callable[[], WorkerStatus]]:
    """A worker without a model; what is known of it."""
    await fleet.start(WorkerConfig(engine=EngineConfig(device="cpu", num_threads=1), place=place))
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield lambda: fleet.statuses()[0]
    finally:
        await fleet.close()


async def test_that_a_process_cannot_be_started_is_told() -> None:
    async with bare(LocalFleet(lambda _: None), place="cpu:4095") as status:
        while status().state is WorkerState.LOADING:
            await asyncio.sleep(0.02)
        failure = status().failure
    assert failure is not None
    assert failure.message.startswith("the worker could not be started: ")


async def test_a_log_that_cannot_be_passed_on_is_read_all_the_same() -> None:
    heard: list[str] = []

    def gone(line: str) -> None:
        heard.append(line)
        raise BrokenPipeError("the terminal is gone")

    async with bare(LocalFleet(gone, environment={"OMP_NUM_THREADS": "1"})) as status:
        while status().state is not WorkerState.READY or not any("serving at" in line for line in heard):
            assert status().failure is None, status().failure
            await asyncio.sleep(0.02)
    assert "ended with status 0" in heard[-1]


async def test_a_model_whose_files_never_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harmonia.fleet.files._PATIENCE_S", 3.0)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UnavailableError, match="could not be read within 3 s"):
        await asyncio.wait_for(inspect_model(str(tmp_path), tmp_path), PATIENCE_S)
