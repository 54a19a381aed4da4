"""`harmonia worker`, and `harmonia serve --worker-port`: what is spawned by one door is asked by another."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from websockets.asyncio.client import connect

from harmonia.protocol.instances import Dealloc, OptimStep, Train
from harmonia.protocol.losses import LanguageModelling
from harmonia.protocol.messages import Done
from harmonia.protocol.threads import Text, ThreadData, ThreadTurn
from tests.integration.conftest import StartServer
from tests.integration.worker_client import Caller

TRAINING = {"mode": "training", "use_adapter": True, "max_batch_size": 256}
THREAD = ThreadData(
    turns=(
        ThreadTurn(role="user", content=(Text(text="Well?"),), weight=0.0),
        ThreadTurn(role="assistant", content=(Text(text="yes"),), weight=1.0),
    )
)


@contextlib.contextmanager
def command(*options: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """`harmonia worker OPTIONS`, killed at the end of the context."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harmonia.cli", "worker", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "400", **env},
    )
    watchdog = threading.Timer(90, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


def wait_line(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """The first line that matches."""
    assert process.stderr
    seen = []
    for line in process.stderr:
        seen.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError("".join(seen))


@contextlib.asynccontextmanager
async def client(url: str) -> AsyncIterator[Caller]:
    """A protocol client."""
    async with connect(url) as socket:
        yield Caller(socket)


async def test_a_bare_worker_says_where_it_is_and_ends_cleanly(tiny: Path, tmp_path: Path) -> None:
    registry = tmp_path / "models"
    with command("--port", "0", "--threads", "1", "--device", "cpu", HARMONIA_REGISTRY=str(registry)) as process:
        ready = wait_line(process, r"ready at (ws://127\.0\.0\.1:\d+), models in (\S+)")
        assert ready[2] == str(registry)
        async with client(ready[1]) as caller:
            await caller.spawn("policy", tiny, **TRAINING)
            trained = Train(id="t", instance="policy", sides=(THREAD,), loss=LanguageModelling())
            assert await caller.do(trained) == Done(id="t")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr and "Traceback" not in process.stderr.read()


async def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with command("--port", "0") as first:
        port = wait_line(first, r"ready at ws://127\.0\.0\.1:(\d+)")[1]
        with command("--port", port) as second:
            wait_line(second, rf"error.*127\.0\.0\.1:{port}.*--port")
            assert second.wait(30) == 1


async def test_what_is_spawned_and_trained_is_served_at_once(tiny: Path, tmp_path: Path, start: StartServer) -> None:
    registry = str(tmp_path / "models")
    options = ("--worker-port", "0", "--registry", registry, "--threads", "1", "--kv-cache-len", "4096")
    with start(tiny, *options) as server, server.client() as http:
        address = server.wait_line(r"(ws://127\.0\.0\.1:\d+)")
        assert address
        async with client(address[1]) as caller:
            await caller.spawn("policy", tiny, **TRAINING)
            body = {"model": "policy", "messages": [{"role": "user", "content": "Well?"}], "max_tokens": 3}
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            for number in range(3):
                await caller.do(Train(id=f"t{number}", instance="policy", sides=(THREAD,), loss=LanguageModelling()))
                await caller.do(OptimStep(id=f"s{number}", instance="policy", lr=1e-2))
            cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
            assert cards.keys() == {"tiny", "policy"} and cards["policy"]["version"] >= 2
            assert http.post("/v1/chat/completions", json={**body, "temperature": 0}).status_code == 200
            await caller.do(Dealloc(id="dealloc", instance="policy"))
            assert http.post("/v1/chat/completions", json=body).status_code == 404
        assert http.post("/v1/chat/completions", json={**body, "model": "tiny"}).status_code == 200
