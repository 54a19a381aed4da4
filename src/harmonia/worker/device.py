"""The device process: owns the engine, takes commands, sends what each step brings."""

from __future__ import annotations

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
from harmonia.config import EngineConfig
from harmonia.engine.requests import SequenceError, SequenceOutput, SequenceRequest
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.protocol.messages import JsonObject
from harmonia.worker.link import (
    Add,
    Attach,
    Command,
    Detach,
    DeviceEnd,
    Drop,
    EndSession,
    Fatal,
    Hold,
    Inspect,
    Mask,
    Measure,
    Outputs,
    Question,
    Ready,
    Release,
    Reply,
    Start,
    watch_for_hangup,
)

_log = log.get_logger("harmonia.worker.device")  # this module runs as __main__


class DeviceEngine(Protocol):
    """What the loop needs of an engine; see `harmonia.engine.engine.Engine`."""

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
    def provide_mask(self, seq_id: int, num_generated: int, mask: bytes) -> None: ...
    def close_session(self, session_id: str) -> None: ...
    def load_adapter(self, key: str, path: str) -> None: ...
    def unload_adapter(self, key: str) -> None: ...
    def describe(self) -> object: ...
    def stats(self) -> object: ...


Load = Callable[[str, str, EngineConfig, Callable[[float], None] | None], DeviceEngine]


class DeviceLoop:
    """Commands in, a step, outputs out, until the I/O process closes the line."""

    def __init__(self, engine: DeviceEngine, line: DeviceEnd) -> None:
        self._engine = engine
        self._line = line
        self._refused: list[SequenceOutput] = []

    def run(self) -> None:
        """Serve until the line is closed; costs nothing while there is nothing to do."""
        with suppress(EOFError, ConnectionError):
            while True:
                self._turn()

    def _turn(self) -> None:
        for command in self._line.receive(self._patience_s()):
            self._obey(command)
        outputs = self._engine.step() if self._engine.has_work else []
        if outputs or self._refused:
            outputs, self._refused = self._refused + outputs, []
            self._line.send(Outputs(tuple(outputs)))

    def _patience_s(self) -> float | None:
        """How long to wait for commands: not at all while something can run."""
        if not self._engine.has_work:
            return None
        if not self._engine.stalled:
            return 0.0
        deadline_s = self._engine.next_deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())

    def _obey(self, command: Command) -> None:
        engine = self._engine
        match command:
            case Add(request):
                self._add(request)
            case Mask(seq_id, num_generated, allowed):
                engine.provide_mask(seq_id, num_generated, allowed)
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
                self._line.send(self._answer(question))

    def _add(self, request: SequenceRequest) -> None:
        try:
            self._engine.add(request)
        except HarmoniaError as error:
            self._refused.append(SequenceOutput(seq_id=request.seq_id, error=SequenceError.of(error)))

    def _answer(self, question: Question) -> Reply:
        try:
            return Reply(question.tag, self._ask(question))
        except HarmoniaError as error:
            return Reply(question.tag, {}, SequenceError.of(error))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            # A broken file of an adapter must not take the backbone and its requests down.
            _log.exception("command failed")
            return Reply(question.tag, {}, SequenceError.of(InvalidRequestError(f"{type(error).__name__}: {error}")))

    def _ask(self, question: Question) -> JsonObject:
        match question:
            case Attach(_, key, path):
                self._engine.load_adapter(key, path)
            case Detach(_, key):
                self._engine.unload_adapter(key)
            case Inspect():
                return _plain(self._engine.describe())
            case Measure():
                return _plain(self._engine.stats())
        return {}


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
        engine = load(config.model, config.key, config.engine, _ProgressLog(config.model))
        for adapter in config.adapters:
            engine.load_adapter(adapter.key, adapter.path)
    except HarmoniaError as error:
        with suppress(ConnectionError):  # the I/O process may have found it, too, and be gone
            line.send(Fatal(SequenceError.of(error)))
        return 3
    line.send(Ready(_plain(engine.describe())))
    DeviceLoop(engine, line).run()
    return 0


def main() -> int:
    """Entry of the process; the argument is the file descriptor of the line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A signal to the whole group is for the I/O process, which ends this one by closing the line.
        signal.signal(number, signal.SIG_IGN)
    log.configure()
    # Only this process imports torch.
    from harmonia.engine.engine import Engine

    return load_and_serve(socket.socket(fileno=int(sys.argv[1])), Engine.load, lambda: os._exit(0))


if __name__ == "__main__":
    sys.exit(main())
