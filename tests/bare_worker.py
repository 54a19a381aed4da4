"""A real worker without a model, in a process of its own: `harmonia worker`."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harmonia.client import get_client
from harmonia.errors import WorkerLostError

START_TIMEOUT_S = 90


@contextmanager
def bare_worker(registry: Path, *options: str) -> Iterator[str]:
    """Its address, until the end of the context."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "harmonia.cli", "worker", "--port", str(port), "--registry", str(registry)]
    process = subprocess.Popen(
        [*command, "--threads", "1", *options], env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
    )
    try:
        asyncio.run(_until_it_answers(f"ws://127.0.0.1:{port}", process))
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(40)


async def _until_it_answers(address: str, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            assert process.poll() is None, "the worker ended"
            try:
                async with await get_client(address):
                    return
            except WorkerLostError:
                continue
