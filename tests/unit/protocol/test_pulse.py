"""Signs of life: who is taken for hanging, and who is not."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from harmonia.protocol.pulse import QUESTIONS, Pulse, answering

SILENCE_S = 0.6
ANSWERER = """
import socket, sys, threading, time
from harmonia.protocol.pulse import answer_forever
line = socket.socket(fileno=int(sys.argv[1]))
time.sleep(float(sys.argv[2]))
threading.Thread(target=answer_forever, args=(line,), daemon=True).start()
exec(sys.argv[3])
"""
BUSY = "while True: sum(range(1000))"


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@contextmanager
def answerer(starts_after_s: float, does: str) -> Iterator[tuple[Pulse, subprocess.Popen[bytes]]]:
    """A process that answers from a thread while its main thread does something."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-c", ANSWERER, str(theirs.fileno()), str(starts_after_s), does]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    with process, closing(Pulse(ours, SILENCE_S)) as pulse:
        try:
            yield pulse, process
        finally:
            process.kill()


async def heard(pulse: Pulse) -> None:
    while not pulse._has_answered:
        await asyncio.sleep(0.01)


async def is_lost(pulse: Pulse, within_s: float) -> bool:
    try:
        await asyncio.wait_for(pulse.lost(), within_s)
    except TimeoutError:
        return False
    return True


async def test_a_loop_that_runs_is_alive_and_one_that_left_is_not(line: tuple[socket.socket, socket.socket]) -> None:
    pulse = Pulse(line[0], SILENCE_S)
    with answering(line[1]):
        assert not await is_lost(pulse, 3 * SILENCE_S)
    assert await is_lost(pulse, 60)


async def test_one_that_never_spoke_may_still_be_starting(line: tuple[socket.socket, socket.socket]) -> None:
    assert not await is_lost(Pulse(line[0], SILENCE_S), 3 * SILENCE_S)


async def test_one_that_ended_does_not_hang(line: tuple[socket.socket, socket.socket]) -> None:
    pulse = Pulse(line[0], SILENCE_S)
    lost = asyncio.create_task(pulse.lost())
    with answering(line[1]):
        await heard(pulse)
    line[1].close()
    done, _ = await asyncio.wait([lost], timeout=3 * SILENCE_S)
    assert not done
    lost.cancel()


async def test_whoever_was_asleep_blames_nobody_else() -> None:
    with answerer(0.0, "time.sleep(600)") as (pulse, _):
        lost = asyncio.create_task(pulse.lost())
        await heard(pulse)
        for _ in range(3):
            time.sleep(2 * SILENCE_S)  # noqa: ASYNC251 - the loop of the one who asks does not run
            await asyncio.sleep(SILENCE_S / QUESTIONS)
            assert not lost.done()
        lost.cancel()


@pytest.mark.parametrize("does", [BUSY, "time.sleep(600)"])
async def test_work_is_no_hanging_and_a_stopped_process_is_one(does: str) -> None:
    with answerer(2 * SILENCE_S, does) as (pulse, process):
        lost = asyncio.create_task(pulse.lost())
        async with asyncio.timeout(60):
            await heard(pulse)
        done, _ = await asyncio.wait([lost], timeout=3 * SILENCE_S)
        assert not done
        process.send_signal(signal.SIGSTOP)
        await asyncio.wait_for(lost, 60)
