"""A worker process of one's own and a plain client for it: what the server does, without the server."""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
from websockets.asyncio.client import ClientConnection, connect, unix_connect

from harmonia.config import AdapterSource, CacheConfig, EngineConfig, WorkerConfig
from harmonia.errors import HarmoniaError, from_code
from harmonia.protocol.instances import Hello, Progress, Spawn, Spawned, SpawnSpec
from harmonia.protocol.messages import (
    ChatPrompt,
    ClientMessage,
    Delta,
    Failed,
    Finished,
    Generate,
    GetStats,
    Step,
    WorkerMessage,
    decode_worker_message,
    encode,
)
from harmonia.protocol.sampling import SamplingParams

START_TIMEOUT_S = 90
FREE = SamplingParams(temperature=0, ignore_eos=True, max_tokens=400)


@dataclass
class WorkerProcess:
    """A worker, ready or not."""

    process: subprocess.Popen[bytes]
    socket: str
    stderr: Path

    def wait_ready(self) -> "WorkerProcess":
        """Until its socket accepts."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not Path(self.socket).exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.stderr.read_text()
            time.sleep(0.02)
        return self

    def wait(self) -> int:
        """Until it has ended; its exit status."""
        return self.process.wait(START_TIMEOUT_S)

    @property
    def device(self) -> psutil.Process:
        """The device process."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    @property
    def url(self) -> str:
        """Where it listens for WebSocket clients."""
        found = re.search(r"ws://\S+", self.stderr.read_text())
        assert found, self.stderr.read_text()
        return found[0]

    @contextlib.asynccontextmanager
    async def connect(self, secret: str = "", *, tcp: bool = False, ttl_s: float = 30.0) -> AsyncIterator["Caller"]:
        """A connection; with a secret, it begins with `Hello`."""
        connecting = connect(self.url) if tcp else unix_connect(self.socket, compression=None, max_size=None)
        async with connecting as socket:
            caller = Caller(socket)
            if secret:
                await caller.do(Hello(id="hello", client=secret, name="test", ttl_after_disconnect_s=ttl_s))
            yield caller


@dataclass
class Answers:
    """Everything that a request brought."""

    deltas: list[Delta] = field(default_factory=list)
    end: WorkerMessage | None = None
    shares: list[float] = field(default_factory=list)

    def text(self, index: int = 0) -> str:
        """All text of an answer."""
        return "".join(delta.text for delta in self.deltas if delta.index == index)

    def ids(self, index: int = 0) -> tuple[int, ...]:
        """All tokens of an answer."""
        return tuple(token for delta in self.deltas if delta.index == index for token in delta.token_ids)

    @property
    def finished(self) -> Finished:
        """Its good end."""
        assert isinstance(self.end, Finished), self.end
        return self.end

    @property
    def error(self) -> HarmoniaError:
        """Its bad end."""
        assert isinstance(self.end, Failed), self.end
        return from_code(self.end.code, self.end.message, self.end.details)

    @property
    def reason(self) -> str | None:
        """Why its last answer ended."""
        return self.deltas[-1].finish_reason


class Caller:
    """One connection, used for one thing at a time or for many at once."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._count = 0

    async def send(self, message: ClientMessage) -> None:
        """Send a message."""
        await self.socket.send(encode(message))

    async def receive(self) -> WorkerMessage:
        """The next message."""
        async with asyncio.timeout(60):
            return decode_worker_message(await self.socket.recv())

    async def ask(self, message: ClientMessage) -> Answers:
        """Send a request and wait for its end; nothing else may be going on."""
        await self.send(message)
        return (await self.gather(message.id))[message.id]

    async def gather(self, *ids: str) -> dict[str, Answers]:
        """Wait for the ends of these requests."""
        answers = {request_id: Answers() for request_id in ids}
        while any(answer.end is None for answer in answers.values()):
            message = await self.receive()
            if isinstance(message, Step):
                for delta in message.deltas:
                    answers[delta.id].deltas.append(delta)
            elif isinstance(message, Progress):
                answers[message.id].shares.append(message.share)
            else:
                answers[message.id].end = message
        return answers

    async def do(self, message: ClientMessage) -> WorkerMessage:
        """Send a request and return its good end; raises its bad one."""
        end = (await self.ask(message)).end
        if isinstance(end, Failed):
            raise from_code(end.code, end.message, end.details)
        assert end is not None
        return end

    async def spawn(self, name: str, path: Path | str, **fields: object) -> Spawned:
        """Make an instance."""
        spawned = await self.do(Spawn(id=f"spawn-{name}", name=name, spec=SpawnSpec(path=str(path), **fields)))
        assert isinstance(spawned, Spawned)
        return spawned

    async def say(self, text: str = "Go on.", *, sampling: SamplingParams = FREE, **fields: object) -> Answers:
        """Chat."""
        self._count += 1
        prompt = fields.pop("prompt", ChatPrompt(messages=({"role": "user", "content": text},)))
        return await self.ask(
            Generate(id=f"say-{self._count}", model="tiny", prompt=prompt, sampling=sampling, **fields)
        )

    async def gauges(self) -> dict[str, float]:
        """What the engine shows at this moment."""
        self._count += 1
        stats = (await self.ask(GetStats(id=f"stats-{self._count}"))).end
        return {**stats.gauges, **stats.counters}

    async def until_quiet(self) -> None:
        """Wait until the engine runs nothing and holds no block."""
        async with asyncio.timeout(20):
            while True:
                gauges = await self.gauges()
                if not any(gauges[name] for name in ("running", "queue_length", "cache_blocks_held")):
                    return
                await asyncio.sleep(0.02)


@contextlib.contextmanager
def start_worker(model: Path | None, folder: Path, **options: object) -> Iterator[WorkerProcess]:
    """`python -m harmonia.worker`, killed at the end of the context; bare without a model."""
    engine = EngineConfig(device="cpu", precision="float32", num_threads=1, cache=CacheConfig(kv_cache_len=4096))
    socket = str(folder / "worker.sock")
    served = {} if model is None else {"model": str(model), "key": "tiny"}
    registry = str(folder / "registry")
    config = WorkerConfig(**{**served, "socket": socket, "registry": registry, "engine": engine, **options})
    command = [sys.executable, "-m", "harmonia.worker", "--config-json", msgspec.json.encode(config).decode()]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        yield WorkerProcess(process, socket, folder / "stderr")
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def adapters(*folders: Path) -> tuple[AdapterSource, ...]:
    """Sources named after their folders."""
    return tuple(AdapterSource(key=folder.name, path=str(folder)) for folder in folders)
