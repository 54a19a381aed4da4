"""The I/O process' handle on the device process: start it, talk to it, notice its end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

from harmonia import log
from harmonia.config import WorkerConfig
from harmonia.engine.environment import compute_environment
from harmonia.engine.requests import SequenceError, SequenceOutput
from harmonia.errors import WorkerLostError, from_code
from harmonia.protocol.messages import JsonObject
from harmonia.protocol.pulse import Pulse
from harmonia.worker.link import (
    Command,
    Event,
    Fatal,
    Frames,
    Loading,
    Outputs,
    Question,
    Ready,
    Reply,
    Start,
    Turn,
    decode_events,
    pack,
)

DEVICE_COMMAND = (sys.executable, "-P", "-m", "harmonia.worker.device")
_EXIT_PATIENCE_S = 5.0

_log = log.get_logger(__name__)

_Answer = asyncio.Future[JsonObject]
Progress = Callable[[float], None]


class Device(asyncio.Protocol):
    """A device process. Commands given in one turn of the event loop leave in one frame."""

    def __init__(self, process: subprocess.Popen[bytes], pulse: Pulse, max_silence_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._process = process
        self._transport: asyncio.Transport | None = None
        self._frames = Frames()
        self._waiting: list[Command] = []
        self._tags = itertools.count(1)
        self._replies: dict[int, _Answer] = {}
        self._progress: dict[int, Progress] = {}
        self.ready: _Answer = loop.create_future()
        """Done when the model is loaded; holds the engine's description, or why loading failed."""
        self.lost = asyncio.Event()
        """Set when the process is gone."""
        self.on_outputs: Callable[[Sequence[SequenceOutput], Turn], None] = lambda outputs, turn: None
        """Called with what each step brought."""
        self._end = "the device process ended"
        self._guard = loop.create_task(self._kill_if_silent(pulse, max_silence_s))

    @staticmethod
    async def start(config: WorkerConfig, command: Sequence[str] = DEVICE_COMMAND) -> Device:
        """Start the process and tell it what to load; `ready` says when it has."""
        (ours, theirs), (asking, asked) = socket.socketpair(), socket.socketpair()
        with theirs, asked:
            process = subprocess.Popen(  # noqa: ASYNC220 - returns as soon as the child runs
                [*command, str(theirs.fileno()), str(asked.fileno())],
                pass_fds=[theirs.fileno(), asked.fileno()],
                stdin=subprocess.DEVNULL,
                env=compute_environment(os.environ, config.engine.num_threads),
            )
        loop, silence_s = asyncio.get_running_loop(), config.max_silence_s
        pulse = Pulse(asking, silence_s)
        _, device = await loop.create_unix_connection(lambda: Device(process, pulse, silence_s), sock=ours)
        device.send(Start(config))
        return device

    def send(self, command: Command) -> None:
        """Give a command; it leaves at the end of this turn of the event loop."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(command)

    def give(self, question: Callable[[int], Question], progress: Progress | None = None) -> _Answer:
        """Send the question made for a fresh tag now; the future holds its answer. `progress` hears shares before."""
        reply = self._loop.create_future()
        if self.lost.is_set():
            reply.set_exception(WorkerLostError(self._end))
            return reply
        tag = next(self._tags)
        self._replies[tag] = reply
        if progress is not None:
            self._progress[tag] = progress

        def forget(_: _Answer) -> None:
            self._replies.pop(tag, None)
            self._progress.pop(tag, None)

        reply.add_done_callback(forget)
        self.send(question(tag))
        return reply

    async def ask(self, question: Callable[[int], Question]) -> JsonObject:
        """Send a question and wait for its answer; errors are raised as on the other side."""
        value: JsonObject = await self.give(question)
        return value

    async def stop(self) -> int:
        """Close the line, which ends the process, and wait for that; returns its exit status."""
        self._guard.cancel()
        await asyncio.gather(self._guard, return_exceptions=True)
        if self._transport is not None:
            self._transport.close()
        try:
            return await asyncio.to_thread(self._process.wait, _EXIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)

    @property
    def pid(self) -> int:
        """Of the device process."""
        return self._process.pid

    @property
    def end(self) -> str:
        """How it ended, once it is lost."""
        return self._end

    async def _kill_if_silent(self, pulse: Pulse, max_silence_s: float) -> None:
        with contextlib.closing(pulse):
            await pulse.lost()
        self._end = f"the device process hung: it did not answer for {max_silence_s:g} s and was killed"
        _log.error("%s", self._end)
        self._process.kill()

    def _flush(self) -> None:
        commands, self._waiting = self._waiting, []
        if self._transport is not None and not self.lost.is_set():
            self._transport.write(pack(commands))

    # ------------------------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        for frame in self._frames.feed(data):
            for event in decode_events(frame):
                self._take(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.lost.set()
        error = WorkerLostError(self._end)
        for future in (self.ready, *self._replies.values()):
            if not future.done():
                future.set_exception(error)
        if not self.ready.cancelled():
            self.ready.exception()  # somebody may never ask

    def _take(self, event: Event) -> None:
        match event:
            case Outputs(outputs, turn):
                self.on_outputs(outputs, turn)
            case Reply(tag, value, error):
                self._resolve(self._replies.get(tag), value, error)
            case Loading(tag, share):
                if tag in self._progress:
                    self._progress[tag](share)
            case Ready(description):
                self._resolve(self.ready, description, None)
            case Fatal(cause):
                self._resolve(self.ready, {}, cause)

    @staticmethod
    def _resolve(future: _Answer | None, value: JsonObject, error: SequenceError | None) -> None:
        if future is None or future.done():
            return
        if error is not None:
            future.set_exception(from_code(error.code, error.message, error.details))
        else:
            future.set_result(value)
