"""Ending what an earlier server left behind."""

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import psutil
import pytest

from harmonia.server.services import processes

NAPPING = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
VARIABLE, JOBS = "OF_JOB", (str(uuid.uuid4()), str(uuid.uuid4()))
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture
def napping() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes with a child each, started for two jobs."""
    nap = [sys.executable, "-c", f"{NAPPING}; time.sleep(600)"]
    started = [subprocess.Popen(nap, env={**os.environ, VARIABLE: job}, start_new_session=True) for job in JOBS]
    while not all(psutil.Process(process.pid).children() for process in started):
        time.sleep(0.05)
    yield started
    for process in started:
        processes.kill_group(process.pid)
        process.wait()


async def test_what_was_started_for_a_job_is_ended_with_all_that_it_started(
    napping: list[subprocess.Popen[bytes]],
) -> None:
    (child,) = psutil.Process(napping[0].pid).children()
    reaping = asyncio.create_task(asyncio.to_thread(napping[0].wait))
    assert await processes.end_leftovers(VARIABLE, {JOBS[0]}, 60) == 2
    assert await reaping != 0
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert napping[1].poll() is None
    assert await processes.end_leftovers(VARIABLE, {JOBS[0]}, 60) == 0
    assert await processes.end_leftovers(VARIABLE, set(), 60) == 0


def test_the_memory_of_a_process_counts_what_it_started() -> None:
    eat = "import sys, time; eaten = b'x' * 2**26; print(flush=True); time.sleep(600)"
    both = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {eat!r}]); {eat}"
    process = subprocess.Popen([sys.executable, "-c", both], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
        assert 2**27 < processes.memory_of_group(process.pid) < 2**29
    finally:
        processes.kill_group(process.pid)
        process.communicate()
    assert processes.memory_of_group(process.pid) == 0
