"""A worker that speaks the real protocol over a real socket and answers from a script."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from websockets.asyncio.server import ServerConnection, unix_serve

from harmonia.config import WorkerConfig
from harmonia.protocol.fleet import Fleet, WorkerState, WorkerStatus
from harmonia.protocol.messages import (
    PROTOCOL_VERSION,
    Cancel,
    ClientMessage,
    Delta,
    Describe,
    Description,
    Done,
    Embed,
    Embedded,
    Failed,
    Finished,
    Generate,
    GetStats,
    Histogram,
    LoadAdapter,
    ModelInfo,
    Pause,
    Resume,
    Stats,
    Step,
    TokenLogprob,
    ToolCall,
    UnloadAdapter,
    Usage,
    WorkerMessage,
    decode_client_message,
    encode,
)

VOCAB_SIZE = 1000


@dataclass
class Script:
    """What the worker does with every `Generate`."""

    words: tuple[str, ...] = ("Paris", " is", " nice")
    finish_reason: str = "stop"
    failure: Failed | None = None
    fail_after: int = 0
    hang_after: int | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class ScriptedWorker:
    """Serves on a Unix socket; `received` holds everything that clients sent."""

    def __init__(self, path: Path, key: str = "tiny") -> None:
        self.path = path
        self.script = Script()
        self.received: list[ClientMessage] = []
        self.models = [ModelInfo(key=key, created=1)]
        self.connections: set[ServerConnection] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ScriptedWorker"]:
        """Accept connections inside the context."""
        async with unix_serve(self._serve, str(self.path), compression=None, max_size=None, ping_interval=None):
            yield self
        self.path.unlink(missing_ok=True)

    def of(self, kind: type[ClientMessage]) -> list[ClientMessage]:
        """The received messages of one kind."""
        return [message for message in self.received if isinstance(message, kind)]

    async def until(self, kind: type[ClientMessage]) -> ClientMessage:
        """Wait for a message of one kind."""
        async with asyncio.timeout(5):
            while not self.of(kind):
                await asyncio.sleep(0.005)
        return self.of(kind)[0]

    async def _serve(self, connection: ServerConnection) -> None:
        self.connections.add(connection)
        async for frame in connection:
            message = decode_client_message(frame)
            self.received.append(message)
            for answer in self._answers(message):
                await connection.send(encode(answer))
        self.connections.discard(connection)

    def _answers(self, message: ClientMessage) -> list[WorkerMessage]:
        match message:
            case Generate():
                return self._generation(message)
            case Embed() if self.script.failure is not None:
                return [Failed(id=message.id, code=self.script.failure.code, message=self.script.failure.message)]
            case Embed():
                vectors = tuple(struct.pack("<4f", 0.6, 0.8, 0.0, 0.0) for _ in message.prompts)
                return [Embedded(id=message.id, vectors=vectors, usage=Usage(prompt_tokens=3, completion_tokens=0))]
            case Describe():
                return [self._description(message.id)]
            case GetStats():
                return [_stats(message.id)]
            case Cancel() | Pause() | Resume():
                return []
            case LoadAdapter():
                if message.path == "/broken":
                    return [Failed(id=message.id, code="adapter_limit", message="no room: max_adapters is 4")]
                self.models.append(ModelInfo(key=message.key, parent=self.models[0].key))
            case UnloadAdapter():
                self.models = [model for model in self.models if model.key != message.key]
        return [Done(id=message.id)]

    def _generation(self, message: Generate) -> list[WorkerMessage]:
        script, answers = self.script, []
        for number, word in enumerate(script.words):
            if script.failure is not None and number == script.fail_after:
                failed = script.failure
                return [
                    *answers,
                    Failed(id=message.id, code=failed.code, message=failed.message, details=failed.details),
                ]
            if number == script.hang_after:
                return answers
            last = number == len(script.words) - 1
            answers.append(Step(deltas=tuple(self._delta(message, i, number, word, last) for i in range(message.n))))
        usage = Usage(prompt_tokens=5, completion_tokens=len(script.words) * message.n, cached_tokens=2)
        return [*answers, Finished(id=message.id, usage=usage)]

    def _delta(self, message: Generate, index: int, number: int, word: str, last: bool) -> Delta:
        sampling, first = message.sampling, number == 0 and index == 0
        return Delta(
            id=message.id,
            index=index,
            text=word,
            token_ids=(number,),
            logprobs=(_logprob(word, number, sampling.logprobs),) if sampling.logprobs is not None else (),
            finish_reason=self.script.finish_reason if last else None,
            tool_calls=self.script.tool_calls if last else (),
            prompt_token_ids=(7, 8) if first else (),
            prompt_logprobs=(_logprob("ab", 7, None), _logprob("cd", 8, 1))
            if first and sampling.prompt_logprobs is not None
            else (),
        )

    def _description(self, request_id: str) -> Description:
        return Description(
            id=request_id,
            protocol_version=PROTOCOL_VERSION,
            models=tuple(self.models),
            family="llama",
            vocab_size=VOCAB_SIZE,
            max_seq_len=128,
            kv_cache_len=1024,
            precision="float32",
            device="cpu",
            has_chat_template=True,
        )


def _logprob(token: str, token_id: int, num_top: int | None) -> TokenLogprob:
    top = ((token_id, token, token.encode(), -0.5),) if num_top else ()
    logprob = None if num_top is None and token_id == 7 else -0.5
    return TokenLogprob(token_id=token_id, token=token, token_bytes=token.encode(), logprob=logprob, top=top)


def _stats(request_id: str) -> Stats:
    ttft = Histogram(bounds=(0.1, float("inf")), counts=(1, 2), total=0.7)
    return Stats(
        id=request_id,
        gauges={"queue_length": 1.0, "cache_occupancy": 0.25},
        counters={"evictions": 3.0, "prefix_hit_tokens": 10.0, "prefix_query_tokens": 20.0},
        by_model={"tiny": {"requests": 2.0, "generated_tokens": 9.0, "prompt_tokens": 5.0, "ttft_timeouts": 1.0}},
        histograms={"tiny": {"ttft_seconds": ttft, "inter_token_seconds": ttft}, "*": {"batch_size": ttft}},
    )


@dataclass
class StillFleet(Fleet):
    """A fleet whose workers are set by hand."""

    workers: dict[str, WorkerStatus] = field(default_factory=dict)
    changes: asyncio.Queue[WorkerStatus] = field(default_factory=asyncio.Queue)

    def set(self, replica: str, state: WorkerState, socket: Path = Path("/none"), key: str = "tiny") -> None:
        """Put a worker into a state and tell the watcher."""
        self.workers[replica] = WorkerStatus(replica=replica, key=key, state=state, socket=str(socket))
        self.changes.put_nowait(self.workers[replica])

    async def start(self, config: WorkerConfig) -> str:
        """Nothing to start."""
        raise NotImplementedError

    async def stop(self, replica: str) -> None:
        """Forget a worker."""
        del self.workers[replica]

    async def close(self) -> None:
        """Nothing to end."""

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """As set."""
        return tuple(self.workers.values())

    async def watch(self) -> AsyncIterator[WorkerStatus]:
        """As set."""
        while True:
            yield await self.changes.get()
