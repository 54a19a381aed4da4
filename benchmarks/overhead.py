"""What the control plane adds to inference: the same chats to the same worker through it and through `harmonia serve`.

Both answer from one process (`benchmarks.fronts`), in turns of A B B A, so that neither drift of the machine nor the
place of the engine's memory tells on one of them only.
"""

from __future__ import annotations

import os
import random
import select
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import psutil

from benchmarks.client import Answer, post
from benchmarks.company import other_cores, spent_s, usage, wait_for_quiet
from benchmarks.compare import spread
from benchmarks.control import empty
from benchmarks.conversation import Conversation, conversing
from benchmarks.errors import BenchmarkError
from benchmarks.machine import Record
from benchmarks.process import environment_of
from benchmarks.serve import say
from benchmarks.server import role_of
from benchmarks.work import Shape

PATH = "/v1/chat/completions"
CONTROL, SERVE = "control", "serve"
TURNS = (SERVE, CONTROL, CONTROL, SERVE), (CONTROL, SERVE, SERVE, CONTROL)
MAX_ADDED_MS = 5.0
"""Of the median latency of one caller alone, with a model so small that the engine's own time does not hide it."""
MIN_RATIO = 0.98
"""Of tokens a second where many ask a real model at once."""
MANY = 32
# Most vocabularies have each of them as one token.
WORDS = (
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is asked of a model, and how often."""

    shapes: Sequence[Shape]
    """`num_input` counts words of the question."""
    requests: int
    """Of a turn, at least; each of the `n` callers sends as many, one after the other."""
    pairs: int
    seed: int
    threads: int
    is_tiny: bool
    """The engine's own time is next to nothing."""
    quiet_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Front:
    """Where one of the two answers."""

    port: int
    model: str
    api_key: str | None

    def request(self, question: str, num_output: int, *, stream: bool) -> bytes:
        """A chat that ends after exactly so many tokens."""
        body: dict[str, object] = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": num_output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        return post(PATH, body, self.api_key)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What callers saw of one front, and what its processes used."""

    wall_s: float
    latencies_s: Sequence[float]
    first_s: Sequence[float]
    """Until the first event of each answer; empty where answers come whole."""
    cpu_s: Mapping[str, float]
    other_cores: float | None


Block = Mapping[str, Sequence[Turn]]
"""The two turns of each front that stand together."""


class Fronts:
    """Both fronts, running."""

    def __init__(self, conversation: Conversation, told: Mapping[str, object], work: Work) -> None:
        self._conversation = conversation
        self._work = work
        (control_port, own_port), (control_model, own_model) = told["ports"], told["models"]  # type: ignore[misc]
        self._fronts = {
            CONTROL: Front(control_port, control_model, str(told["api_key"])),
            SERVE: Front(own_port, own_model, None),
        }
        self._processes = {os.getpid(): "client"}
        parent = psutil.Process(int(str(told["pid"])))
        tree = (parent, *parent.children(recursive=True))
        self._processes |= {process.pid: role_of(process.cmdline()) for process in tree}

    def turn(self, name: str, shape: Shape, salt: str, *, stream: bool) -> Turn:
        """Let `n` callers ask one front."""
        count = max(1, -(-self._work.requests // shape.n))
        front, written = self._fronts[name], self._written()
        questions = self._questions(shape, salt, shape.n * count)
        requests = [front.request(question, shape.num_output, stream=stream) for question in questions]
        before = usage(self._processes)
        start = time.perf_counter()
        answers = ask(front.port, requests, shape.n)
        wall_s = time.perf_counter() - start
        now = self._written()  # what is still being written belongs to this turn
        after = usage(self._processes)
        if now - written != (len(requests) if name == CONTROL else 0):
            raise BenchmarkError(f"{now - written} interactions were stored for {len(requests)} requests to {name}")
        for answer in answers:
            answer.check(shape.num_output)
        return Turn(
            wall_s=wall_s,
            latencies_s=[answer.seconds for answer in answers],
            first_s=[answer.first_s - answer.began_s for answer in answers if answer.first_s is not None],
            cpu_s=spent_s(before, after),
            other_cores=other_cores(before, after),
        )

    def block(self, shape: Shape, index: int, *, stream: bool) -> Block:
        """Two turns of each; who begins changes from block to block."""
        wait_for_quiet(self._work.quiet_s)
        block: dict[str, list[Turn]] = {CONTROL: [], SERVE: []}
        for name in TURNS[index % 2]:
            salt = f"{index}/{name}/{len(block[name])}"
            block[name].append(self.turn(name, shape, salt, stream=stream))
        return block

    def warm_up(self, shape: Shape, *, stream: bool) -> None:
        """Let both make what they make once."""
        for name in (CONTROL, SERVE):
            self.turn(name, replace(shape, num_output=min(shape.num_output, 4)), f"warm-up/{name}", stream=stream)

    def _written(self) -> int:
        return int(self._conversation.ask({})["written"])

    def _questions(self, shape: Shape, salt: str, count: int) -> list[str]:
        """Different from the first word on, so that no prefix cache helps."""
        draw = random.Random(f"{self._work.seed}/{shape}/{salt}")
        return [
            " ".join([f"{draw.randrange(10**8):08}", *draw.choices(WORDS, k=shape.num_input)]) for _ in range(count)
        ]


class ChatAnswer(Answer):
    """One chat on its way."""

    def __init__(self, port: int, request: bytes) -> None:
        self.began_s = time.perf_counter()
        self.seconds = 0.0
        """From the first byte that was sent to the last that came."""
        super().__init__(port, request)

    def check(self, num_output: int) -> None:
        """Raise `BenchmarkError` unless it is an answer of so many tokens."""
        if b'"completion_tokens":%d,' % num_output not in self.received:
            shown = self.received[-500:].decode(errors="replace")
            raise BenchmarkError(f"asked for {num_output} tokens, got something else: {shown}")


def ask(port: int, requests: Sequence[bytes], n: int) -> list[ChatAnswer]:
    """Send all requests, `n` at a time: whoever has an answer sends the next request."""
    left, done = iter(requests), []
    waiting: dict[int, ChatAnswer] = {}
    poll = select.poll()

    def send() -> None:
        request = next(left, None)
        if request is not None:
            answer = ChatAnswer(port, request)
            waiting[answer.socket.fileno()] = answer
            poll.register(answer.socket, select.POLLIN)

    for _ in range(n):
        send()
    while waiting:
        for number, _ in poll.poll():
            answer = waiting[number]
            if not answer.receive():
                answer.seconds = time.perf_counter() - answer.began_s
                poll.unregister(number)
                waiting.pop(number).socket.close()
                done.append(answer)
                send()
    return done


def overhead(databases: Sequence[str], model: Path, work: Work, machine: Record) -> Iterator[Record]:
    """One record for each database, shape, and way to answer."""
    for database in databases:
        say(f"starting the control plane on {database} with {model.name}")
        with running(database, model, work) as fronts:
            for shape in work.shapes:
                for stream in (True, False):
                    say(f"in turns: n={shape.n} input={shape.num_input} output={shape.num_output} stream={stream}")
                    fronts.warm_up(shape, stream=stream)
                    blocks = [fronts.block(shape, index, stream=stream) for index in range(work.pairs)]
                    told = {
                        "kind": "overhead",
                        "database": database,
                        "model": model.name,
                        "answers": "streamed" if stream else "whole",
                    }
                    yield told | overhead_record(shape, blocks, is_tiny=work.is_tiny) | {"machine": machine}


@contextmanager
def running(database: str, model: Path, work: Work) -> Iterator[Fronts]:
    """Start both fronts on an empty database, and end them afterwards."""
    with ExitStack() as stack:
        address = stack.enter_context(empty(database))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        command = [sys.executable, "-m", "benchmarks.fronts"]
        conversation = stack.enter_context(conversing("harmonia", command, environment_of("harmonia", work.threads)))
        told = conversation.ask({"folder": folder, "database": address, "model": str(model)})
        yield Fronts(conversation, told, work)


def overhead_record(shape: Shape, blocks: Sequence[Block], *, is_tiny: bool) -> Record:
    """What both gave, and the difference block by block.

    Latency is judged where one caller asks a tiny model, speed where many ask a real one: elsewhere either drowns in
    what the engine does, or there is nothing but overhead.
    """
    ratio = spread([_per_second(block[CONTROL]) / _per_second(block[SERVE]) for block in blocks])
    added_ms = median(_p50_ms(block[CONTROL]) - _p50_ms(block[SERVE]) for block in blocks)
    sides = {name: [turn for block in blocks for turn in block[name]] for name in (CONTROL, SERVE)}
    cpu_ms = {name: _cpu_ms(turns, "server") for name, turns in sides.items()}
    engine_ms = _cpu_ms([turn for turns in sides.values() for turn in turns], "io", "device")
    streams = bool(sides[SERVE][0].first_s)
    first_ms = [_first_ms(block[CONTROL]) - _first_ms(block[SERVE]) for block in blocks] if streams else None
    ok = None
    if is_tiny and shape.n == 1:
        ok = added_ms <= MAX_ADDED_MS
    elif not is_tiny and shape.n >= MANY:
        ok = ratio.median >= MIN_RATIO
    return {
        "n": shape.n,
        "input": shape.num_input,
        "output": shape.num_output,
        "requests": sum(len(turn.latencies_s) for turn in sides[CONTROL]),
        "requests_s": {name: round(_per_second(turns), 2) for name, turns in sides.items()},
        "out_tok_s": {name: round(shape.num_output * _per_second(turns), 1) for name, turns in sides.items()},
        "p50_ms": {name: round(_p50_ms(turns), 2) for name, turns in sides.items()},
        "added_ms": round(added_ms, 2),
        "added_first_ms": None if first_ms is None else round(median(first_ms), 2),
        "ratio_min": round(ratio.low, 3),
        "ratio_median": round(ratio.median, 3),
        "ratio_max": round(ratio.high, 3),
        "cpu_ms": {name: round(value, 3) for name, value in cpu_ms.items()} | {"engine": round(engine_ms, 3)},
        "cpu_share": round((cpu_ms[CONTROL] - cpu_ms[SERVE]) / (cpu_ms[SERVE] + engine_ms), 4),
        "other_cores": _company(blocks),
        "ok": ok,
    }


def _per_second(turns: Sequence[Turn]) -> float:
    return sum(len(turn.latencies_s) for turn in turns) / sum(turn.wall_s for turn in turns)


def _p50_ms(turns: Sequence[Turn]) -> float:
    return 1e3 * median(seconds for turn in turns for seconds in turn.latencies_s)


def _first_ms(turns: Sequence[Turn]) -> float:
    return 1e3 * median(seconds for turn in turns for seconds in turn.first_s)


def _cpu_ms(turns: Sequence[Turn], *roles: str) -> float:
    """Processor time of these processes for a request, the median turn."""
    return median(1e3 * sum(turn.cpu_s.get(role, 0.0) for role in roles) / len(turn.latencies_s) for turn in turns)


def _company(blocks: Sequence[Block]) -> float | None:
    known = [turn.other_cores for block in blocks for turns in block.values() for turn in turns]
    found = [cores for cores in known if cores is not None]
    return round(max(found), 2) if found else None
