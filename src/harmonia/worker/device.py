"""The device process: owns the engine, takes commands, sends what each step brings."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import msgspec

from harmonia import log
from harmonia.config import WorkerConfig
from harmonia.engine.requests import (
    Answer,
    OptimStepRequest,
    SaveRequest,
    SequenceError,
    SequenceOutput,
    SequenceRequest,
    TrainRequest,
)
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.protocol.instances import SpawnSpec
from harmonia.protocol.messages import JsonObject
from harmonia.protocol.pulse import answer_forever
from harmonia.worker.link import (
    NO_TURN,
    Add,
    Advance,
    Attach,
    Command,
    Copy,
    Count,
    Detach,
    DeviceEnd,
    Drop,
    EndSession,
    Estimate,
    Fatal,
    Free,
    Hold,
    Inspect,
    Lasting,
    Learn,
    Loading,
    Make,
    Mask,
    Measure,
    Outputs,
    Question,
    Quick,
    Read,
    Ready,
    Release,
    Reply,
    Start,
    Turn,
    Write,
    watch_for_hangup,
)

_log = log.get_logger("harmonia.worker.device")  # this module runs as __main__


class DeviceEngine(Protocol):
    """What the loop needs of a runtime; see `harmonia.engine.runtime.Runtime`."""

    @property
    def has_work(self) -> bool: ...
    @property
    def stalled(self) -> bool: ...
    @property
    def next_deadline_s(self) -> float | None: ...
    def step(self) -> list[SequenceOutput]: ...
    def add(self, request: SequenceRequest) -> None: ...
    def cancel(self, seq_id: int) -> None: ...
    def hold(self, seq_id: int) -> None: ...
    def release(self, seq_id: int) -> None: ...
    def provide_mask(self, seq_id: int, num_generated: int, masks: bytes, proposals: bytes = b"") -> None: ...
    def close_session(self, session_id: str) -> None: ...
    def load_adapter(self, key: str, path: str) -> None: ...
    def unload_adapter(self, key: str) -> None: ...
    def describe(self) -> object: ...
    def stats(self) -> object: ...
    def spawn(self, name: str, spec: SpawnSpec, answer: Answer, progress: Callable[[float], None]) -> None: ...
    def plan_spawn(self, spec: SpawnSpec) -> JsonObject: ...
    def clone(self, instance: str, name: str, answer: Answer) -> None: ...
    def dealloc(self, instance: str) -> None: ...
    def train(self, request: TrainRequest, answer: Answer) -> None: ...
    def optim_step(self, request: OptimStepRequest, answer: Answer) -> None: ...
    def set_optim_step(self, instance: str, step: int, answer: Answer) -> None: ...
    def save(self, request: SaveRequest, answer: Answer) -> None: ...
    def load_weights(self, instance: str, path: str, answer: Answer) -> None: ...


Load = Callable[[WorkerConfig, Callable[[float], None]], DeviceEngine]


class LineAnswer:
    """Sends the answer to a command when it is there."""

    def __init__(self, line: DeviceEnd, tag: int) -> None:
        self._line = line
        self._tag = tag
        self._share = -1.0

    def done(self, value: JsonObject) -> None:
        """It succeeded."""
        self._line.send(Reply(self._tag, _plain(value)))

    def failed(self, error: HarmoniaError) -> None:
        """It did not."""
        self._line.send(Reply(self._tag, {}, SequenceError.of(error)))

    def progress(self, share: float) -> None:
        """This much of it is done; repetitions and what nobody would see are not sent."""
        if share > self._share + 0.01 or share >= 1.0 > self._share:
            self._share = share
            self._line.send(Loading(self._tag, share))


class DeviceLoop:
    """Commands in, a step, outputs out, until the I/O process closes the line."""

    def __init__(self, engine: DeviceEngine, line: DeviceEnd) -> None:
        self._engine = engine
        self._line = line
        self._refused: list[SequenceOutput] = []
        self._num_steps = 0

    def run(self) -> None:
        """Serve until the line is closed; costs nothing while there is nothing to do."""
        with suppress(EOFError, ConnectionError):
            while True:
                self._turn()

    def _turn(self) -> None:
        for command in self._line.receive(self._patience_s()):
            self._obey(command)
        outputs, turn = self._step() if self._engine.has_work or self._is_due() else ([], NO_TURN)
        if outputs or self._refused:
            outputs, self._refused = self._refused + outputs, []
            self._line.send(Outputs(tuple(outputs), turn))

    def _step(self) -> tuple[list[SequenceOutput], Turn]:
        self._num_steps += 1
        began_s = time.monotonic()
        outputs = self._engine.step()
        return outputs, Turn(self._num_steps, began_s, time.monotonic())

    def _patience_s(self) -> float | None:
        """How long to wait for commands: not at all while something can run."""
        if self._engine.has_work and not self._engine.stalled:
            return 0.0
        deadline_s = self._engine.next_deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())

    def _is_due(self) -> bool:
        deadline_s = self._engine.next_deadline_s
        return deadline_s is not None and deadline_s <= time.monotonic()

    def _obey(self, command: Command) -> None:
        engine = self._engine
        match command:
            case Add(request):
                self._add(request)
            case Mask(seq_id, num_generated, allowed, proposals):
                engine.provide_mask(seq_id, num_generated, allowed, proposals)
            case Drop(seq_ids):
                _each(engine.cancel, seq_ids)
            case Hold(seq_ids):
                _each(engine.hold, seq_ids)
            case Release(seq_ids):
                _each(engine.release, seq_ids)
            case EndSession(session_id):
                engine.close_session(session_id)
            case Start():
                raise AssertionError("started twice")
            case question:
                self._answer(question)

    def _add(self, request: SequenceRequest) -> None:
        try:
            self._engine.add(request)
        except HarmoniaError as error:
            self._refused.append(SequenceOutput(seq_id=request.seq_id, error=SequenceError.of(error)))

    def _answer(self, question: Question) -> None:
        answer = LineAnswer(self._line, question.tag)
        try:
            if isinstance(question, Lasting):
                self._begin(question, answer)
            else:
                answer.done(self._ask(question))
        except HarmoniaError as error:
            answer.failed(error)
        except ConnectionError:
            raise  # the line itself
        except Exception as error:  # noqa: BLE001 - one client's command must not take everyone's models down
            _log.exception("command failed")
            answer.failed(InvalidRequestError(f"{type(error).__name__}: {error}"))

    def _ask(self, question: Quick) -> JsonObject:
        match question:
            case Attach(_, key, path):
                self._engine.load_adapter(key, path)
            case Detach(_, key):
                self._engine.unload_adapter(key)
            case Free(_, instance):
                self._engine.dealloc(instance)
            case Estimate(_, spec):
                return self._engine.plan_spawn(spec)
            case Inspect():
                return _plain(self._engine.describe())
            case Measure():
                return _plain(self._engine.stats())
        return {}

    def _begin(self, question: Lasting, answer: LineAnswer) -> None:
        match question:
            case Make(_, name, spec):
                self._engine.spawn(name, spec, answer, answer.progress)
            case Copy(_, instance, name):
                self._engine.clone(instance, name, answer)
            case Learn(_, request):
                self._engine.train(request, answer)
            case Advance(_, request):
                self._engine.optim_step(request, answer)
            case Count(_, instance, step):
                self._engine.set_optim_step(instance, step, answer)
            case Write(_, request):
                self._engine.save(request, answer)
            case Read(_, instance, path):
                self._engine.load_weights(instance, path, answer)


def _each(do: Callable[[int], None], seq_ids: tuple[int, ...]) -> None:
    for seq_id in seq_ids:
        do(seq_id)


def _plain(value: object) -> JsonObject:
    plain = msgspec.to_builtins(value)
    assert isinstance(plain, dict)
    return plain


class _ProgressLog:
    """Logs the progress of loading, a quarter at a time."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._next = 0.25

    def __call__(self, share: float) -> None:
        if share >= self._next:
            _log.info("loading %s: %d %%", self._model, round(share * 100))
            self._next = share + 0.25


def load_and_serve(sock: socket.socket, load: Load, on_hangup: Callable[[], None]) -> int:
    """Load what the first command says, report, serve. The exit status: 0, or 3 if loading failed.

    on_hangup: called in a thread when the I/O process is gone, since loading and long steps do not look at the line.
    """
    line = DeviceEnd(sock)
    threading.Thread(target=watch_for_hangup, args=(sock, on_hangup), daemon=True).start()
    try:
        start, *others = line.receive(None)
    except (EOFError, ConnectionError):
        return 0  # the I/O process found the model's files broken before this one had begun
    assert isinstance(start, Start) and not others
    config = start.config
    try:
        engine = load(config, _ProgressLog(config.model or "nothing"))
        for adapter in config.adapters:
            engine.load_adapter(adapter.key, adapter.path)
    except HarmoniaError as error:
        with suppress(ConnectionError):  # the I/O process may have found it, too, and be gone
            line.send(Fatal(SequenceError.of(error)))
        return 3
    line.send(Ready(_plain(engine.describe())))
    # What was made so far stays. A full collection that looked at it would take 100 ms, between two tokens of everyone.
    gc.collect()
    gc.freeze()
    DeviceLoop(engine, line).run()
    return 0


def main() -> int:
    """Entry of the process; the arguments are the file descriptors of the line and of the pulse."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A signal to the whole group is for the I/O process, which ends this one by closing the line.
        signal.signal(number, signal.SIG_IGN)
    log.configure()
    # Only this process imports torch.
    from harmonia.engine.runtime import Runtime

    line, pulse = (socket.socket(fileno=int(argument)) for argument in sys.argv[1:3])
    # Steps, loads and saves may last; this thread runs beside them unless the whole process hangs. It begins after the
    # import above, which may hold the interpreter for as long as a cold disk takes.
    threading.Thread(target=answer_forever, args=(pulse,), daemon=True).start()

    def load(config: WorkerConfig, progress: Callable[[float], None]) -> DeviceEngine:
        if config.model is None:
            return Runtime(config.engine)
        return Runtime.load(config.model, config.key, config.engine, progress)

    return load_and_serve(line, load, lambda: os._exit(0))


if __name__ == "__main__":
    sys.exit(main())
