"""A small worker in this process: the real protocol over a real WebSocket, bytes as tokens, canned values."""

import asyncio
import struct
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from harmonia.errors import HarmoniaError, InvalidRequestError, SequenceTooLongError, UnknownModelError
from harmonia.protocol import instances as i
from harmonia.protocol.losses import LAST_TOKEN, PAIRED, Tangents
from harmonia.protocol.messages import (
    PROTOCOL_VERSION,
    Cancel,
    ClientMessage,
    Delta,
    Done,
    Embed,
    Embedded,
    Failed,
    Finished,
    Generate,
    Step,
    ThreadPrompt,
    Usage,
    WorkerMessage,
    decode_client_message,
    encode,
)
from harmonia.protocol.threads import StructuredOutput, Text, ThreadData, ThreadTurn, TokenThreadData, TokenTurn
from harmonia.threads import StringThread, TokenizedThread

HEADER, END = 256, 257
ANSWER = "Paris"
LOGPROB = -0.5


@dataclass
class Model:
    """An instance; what it was trained with since its last step."""

    info: i.InstanceInfo
    max_batch_size: int = 0
    gradients: list[i.Train] = field(default_factory=list)
    adam_step: int = 0


@dataclass
class Known:
    """What the worker keeps of a client while it is away."""

    connection: ServerConnection | None = None
    answers: dict[str, list[WorkerMessage]] = field(default_factory=lambda: defaultdict(list))
    begun: set[str] = field(default_factory=set)
    owned: set[str] = field(default_factory=set)


class SmallWorker:
    """`received` holds everything that clients sent; `hold` makes it wait before it answers the kinds in `held`."""

    def __init__(self) -> None:
        self.port = 0
        self.received: list[ClientMessage] = []
        self.models: dict[str, Model] = {}
        self.clients: dict[str, Known] = {}
        self.connections: set[ServerConnection] = set()
        self.held: tuple[type[ClientMessage], ...] = ()
        self.go_on = asyncio.Event()
        self.executed: list[str] = []
        self._order = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"ws://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["SmallWorker"]:
        """Accept connections inside the context."""
        async with serve(self._serve, "127.0.0.1", self.port, compression=None, max_size=None) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self
            self.go_on.set()
            await asyncio.gather(*self._tasks)

    def of(self, kind: type[ClientMessage]) -> list[Any]:
        """The received messages of one kind."""
        return [message for message in self.received if isinstance(message, kind)]

    async def until(self, kind: type[ClientMessage], count: int = 1) -> Any:
        """Wait for messages of one kind; the last of them."""
        async with asyncio.timeout(5):
            while len(self.of(kind)) < count:
                await asyncio.sleep(0.005)
        return self.of(kind)[count - 1]

    def cut(self) -> None:
        """Break every connection without a word."""
        for connection in list(self.connections):
            connection.transport.abort()

    # ------------------------------------------------------------------------------------------ connections

    async def _serve(self, connection: ServerConnection) -> None:
        self.connections.add(connection)
        client = Known()
        try:
            async for frame in connection:
                message = decode_client_message(frame)
                self.received.append(message)
                if isinstance(message, i.Hello):
                    resumed = message.client in self.clients
                    client = self.clients.setdefault(message.client, client)
                    client.connection = connection
                    answer = i.Welcome(id=message.id, protocol_version=PROTOCOL_VERSION, resumed=resumed)
                    await connection.send(encode(answer))
                else:
                    await self._receive(client, message)
        except ConnectionClosed:
            return
        finally:
            self.connections.discard(connection)

    async def _receive(self, client: Known, message: ClientMessage) -> None:
        if isinstance(message, Cancel):
            return
        if message.id in client.begun:
            for answer in client.answers[message.id]:
                await self._send(client, answer)
            return
        client.begun.add(message.id)
        task = asyncio.create_task(self._run(client, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, client: Known, message: ClientMessage) -> None:
        try:
            answers = await self._answers(client, message)
        except HarmoniaError as error:
            answers = [Failed(id=message.id, code=error.code, message=error.message)]
        client.answers[message.id] = answers
        for answer in answers:
            await self._send(client, answer)

    async def _send(self, client: Known, answer: WorkerMessage) -> None:
        try:
            assert client.connection
            await client.connection.send(encode(answer))
        except ConnectionClosed:
            return

    # --------------------------------------------------------------------------------------------- commands

    async def _answers(self, client: Known, message: ClientMessage) -> list[WorkerMessage]:
        if isinstance(message, i.Spawn):
            for share in (0.25, 0.5, 1.0):
                await self._send(client, i.Progress(id=message.id, share=share))
        if isinstance(message, Generate) and message.stream:
            await self._send(client, Step(deltas=(Delta(id=message.id, text="Well, "),)))
        if isinstance(message, self.held):
            await self.go_on.wait()
        async with self._order:
            self.executed.append(message.id)
            if isinstance(message, Generate):
                return self._generated(message)
            if isinstance(message, i.Spawn | i.Clone):
                return [self._spawned(client, message)]
            return [self._answer(message)]

    def _answer(self, message: Any) -> WorkerMessage:
        match message:
            case i.PlanSpawn():
                return i.Planned(id=message.id, plan={"weights": 1000, "mode": message.spec.mode})
            case Embed():
                vectors = tuple(struct.pack("<2f", 0.6, 0.8) for _ in message.prompts)
                return Embedded(id=message.id, vectors=vectors, usage=Usage(prompt_tokens=1, completion_tokens=0))
            case i.TokenizeText():
                return i.TokenIds(id=message.id, token_ids=tuple(message.text.encode()))
            case i.DetokenizeIds():
                return i.PlainText(id=message.id, text=bytes(message.token_ids).decode(errors="replace"))
        return self._about_instance(self._model(message.instance), message)

    def _about_instance(self, model: Model, message: Any) -> WorkerMessage:
        match message:
            case i.Train():
                self._train(model, message)
            case i.OptimStep():
                return self._stepped(model, message)
            case i.SetOptimStep():
                model.adam_step = message.step
            case i.Score():
                return self._scored(model, message)
            case i.Tokenize():
                return i.Tokenized(id=message.id, thread=tokens_of(message.thread))
            case i.Detokenize():
                return i.Detokenized(id=message.id, thread=text_of(message.thread))
            case i.Save():
                return i.Saved(id=message.id, key=message.key, path="/registry/" + message.key, num_bytes=9)
            case i.Load():
                model.adam_step = 40
                return i.Loaded(id=message.id, version=2, optim_step=40)
            case i.Dealloc():
                del self.models[message.instance]
        return Done(id=message.id)

    def _model(self, name: str) -> Model:
        if name not in self.models:
            raise UnknownModelError(f"no model '{name}'")
        return self.models[name]

    def _spawned(self, client: Known, message: i.Spawn | i.Clone) -> i.Spawned:
        if message.name in self.models:
            raise InvalidRequestError(f"the name '{message.name}' is taken")
        if isinstance(message, i.Clone):
            info = msgspec.structs.replace(self._model(message.instance).info, name=message.name, mode="inference")
        else:
            spec = message.spec
            info = i.InstanceInfo(
                name=message.name,
                path=spec.path,
                backbone=spec.path,
                mode=spec.mode,
                version=0,
                is_adapter=bool(spec.use_adapter),
                is_scalar=spec.scalar_head,
                max_seq_len=512,
                max_batch_size=spec.max_batch_size,
            )
        self.models[message.name] = Model(info)
        client.owned.add(message.name)
        return i.Spawned(id=message.id, instance=info)

    def _train(self, model: Model, message: i.Train) -> None:
        expected = 2 if isinstance(message.loss, PAIRED) else 1
        assert len(message.sides) == expected
        for side in message.sides:
            sample = serialized(side)
            if model.info.max_batch_size and len(sample[0]) > model.info.max_batch_size:
                raise SequenceTooLongError(f"{len(sample[0])} tokens, max_batch_size is {model.info.max_batch_size}")
            wanted = len(sample[0]) if isinstance(message.loss, Tangents) else sum(w != 0 for w in sample[1])
            for name in ("trajectory_logprobs", "advantages", "targets", "tangents"):
                given = getattr(message.loss, name, None)
                if given is not None and len(given) != wanted:
                    raise InvalidRequestError(f"{name} has {len(given)} entries, the sample {wanted} weighted tokens")
        assert wanted or isinstance(message.loss, LAST_TOKEN)
        model.gradients.append(message)

    def _stepped(self, model: Model, message: i.OptimStep) -> i.Stepped:
        model.adam_step += 1
        metrics = {"loss": 1.5, "grad_norm": 0.5, "num_samples": float(len(model.gradients)), "lr": message.lr}
        model.gradients.clear()
        return i.Stepped(id=message.id, metrics=metrics, version=model.adam_step, optim_step=model.adam_step)

    def _scored(self, model: Model, message: i.Score) -> i.Scored:
        if model.info.is_scalar != (message.what != "logprobs"):
            raise InvalidRequestError(f"'{model.info.name}' cannot give {message.what}")
        _, weights = serialized(message.sample)
        count = 1 if message.what == "last_score" else sum(weight != 0 for weight in weights)
        return i.Scored(id=message.id, values=struct.pack(f"<{count}f", *[LOGPROB] * count), version=0)

    def _generated(self, message: Generate) -> list[WorkerMessage]:
        self._model(message.model)
        ids = tuple(ANSWER.encode())[: message.sampling.max_tokens]
        delta = Delta(id=message.id, text=bytes(ids).decode(), token_ids=ids, finish_reason="stop")
        threads: tuple[TokenThreadData, ...] = ()
        if isinstance(message.prompt, ThreadPrompt):
            threads = (_answered(message.prompt.thread, ids, message),)
        usage = Usage(prompt_tokens=3, completion_tokens=len(ids))
        timings_ms = {"queue": 1.0, "ttft": 3.0, "total": 11.0}
        return [Step(deltas=(delta,)), Finished(id=message.id, usage=usage, timings_ms=timings_ms, threads=threads)]


def _answered(thread: ThreadData | TokenThreadData, ids: tuple[int, ...], message: Generate) -> TokenThreadData:
    data = tokens_of(thread) if isinstance(thread, ThreadData) else thread
    text = bytes(ids).decode()
    content: Any = Text(text=text)
    if message.constraint is not None:
        content = StructuredOutput(raw_text='{"a":1}', parsed_json='{"a":1}', schema=message.constraint.source)
    start = len(data.token_ids) + 1
    turns = tuple(msgspec.structs.replace(turn, weight=0.0) for turn in data.turns)
    answer = TokenTurn(role="assistant", start=start, stop=start + len(ids), weight=1.0, content=(content,))
    return TokenThreadData(token_ids=(*data.token_ids, HEADER, *ids), turns=(*turns, answer))


def tokens_of(thread: ThreadData) -> TokenThreadData:
    """A header token, the bytes of the text, an end token."""
    ids: list[int] = []
    turns = []
    for turn, (_, text) in zip(thread.turns, StringThread.from_data(thread).get_turns(), strict=True):
        ids.append(HEADER)
        start = len(ids)
        ids += [*text.encode(), END]
        turns.append(TokenTurn(role=turn.role, start=start, stop=len(ids), weight=turn.weight, content=turn.content))
    return TokenThreadData(token_ids=tuple(ids), turns=tuple(turns))


def text_of(thread: TokenThreadData) -> ThreadData:
    """The turns in text."""
    turns = [ThreadTurn(role=turn.role, content=turn.content, weight=turn.weight) for turn in thread.turns]
    return ThreadData(turns=tuple(turns))


def serialized(sample: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Token ids and weights."""
    if isinstance(sample, i.TokenSample):
        return sample.token_ids, sample.weights
    if isinstance(sample, i.TargetSample):
        return sample.token_ids, ()
    data = tokens_of(sample) if isinstance(sample, ThreadData) else sample
    return data.token_ids, TokenizedThread.from_data(data).weights
