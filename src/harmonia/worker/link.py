"""The line between the I/O process and the device process: batches of words, length-framed msgpack on a socket pair."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

import msgspec

from harmonia.config import WorkerConfig
from harmonia.engine.requests import (
    OptimStepRequest,
    SaveRequest,
    SequenceError,
    SequenceOutput,
    SequenceRequest,
    TrainRequest,
)
from harmonia.protocol.instances import SpawnSpec
from harmonia.protocol.messages import JsonObject

_RECEIVE_BYTES = 1 << 20
_header = struct.Struct("<I")


class _Word(msgspec.Struct, frozen=True, tag=True):
    pass


# --------------------------------------------------------------------------------------------- to the device


class Start(_Word, frozen=True):
    """The first word: what to load."""

    config: WorkerConfig


class Add(_Word, frozen=True):
    """Take a sequence in; a refusal comes back as its output."""

    request: SequenceRequest


class Drop(_Word, frozen=True):
    """Cancel sequences."""

    seq_ids: tuple[int, ...]


class Hold(_Word, frozen=True):
    """Pause sequences."""

    seq_ids: tuple[int, ...]


class Release(_Word, frozen=True):
    """Go on with paused sequences."""

    seq_ids: tuple[int, ...]


class Mask(_Word, frozen=True):
    """Tokens that a grammar allows after `num_generated` tokens."""

    seq_id: int
    num_generated: int
    allowed: bytes
    """One bit per token; behind it the same for what follows each proposal."""
    proposals: bytes = b""
    """int32: tokens that may come."""


class EndSession(_Word, frozen=True):
    """Forget a session."""

    session_id: str


class Attach(_Word, frozen=True):
    """Load an adapter."""

    tag: int
    key: str
    path: str


class Detach(_Word, frozen=True):
    """Unload an adapter."""

    tag: int
    key: str


class Inspect(_Word, frozen=True):
    """Ask for the engine's description."""

    tag: int


class Measure(_Word, frozen=True):
    """Ask for the engine's statistics."""

    tag: int


class Make(_Word, frozen=True):
    """Make an instance; `Loading` comes on the way."""

    tag: int
    name: str
    spec: SpawnSpec


class Estimate(_Word, frozen=True):
    """Plan an instance without making it."""

    tag: int
    spec: SpawnSpec


class Copy(_Word, frozen=True):
    """Make a frozen snapshot of an instance."""

    tag: int
    instance: str
    name: str


class Free(_Word, frozen=True):
    """Deallocate an instance."""

    tag: int
    instance: str


class Learn(_Word, frozen=True):
    """Add the gradient of a sample."""

    tag: int
    request: TrainRequest


class Advance(_Word, frozen=True):
    """Step the optimizer."""

    tag: int
    request: OptimStepRequest


class Count(_Word, frozen=True):
    """Set the number of optimizer steps done."""

    tag: int
    instance: str
    step: int


class Write(_Word, frozen=True):
    """Save an instance."""

    tag: int
    request: SaveRequest


class Read(_Word, frozen=True):
    """Load an instance's weights from a folder."""

    tag: int
    instance: str
    path: str


Quick = Attach | Detach | Inspect | Measure | Estimate | Free
"""Questions that are answered at once."""
Lasting = Make | Copy | Learn | Advance | Count | Write | Read
"""Questions that are answered when they are done, some steps later."""
Question = Quick | Lasting
Command = Start | Add | Drop | Hold | Release | Mask | EndSession | Question

# ------------------------------------------------------------------------------------------- from the device


class Ready(_Word, frozen=True):
    """The model is loaded."""

    description: JsonObject


class Fatal(_Word, frozen=True):
    """Loading failed; the process ends."""

    error: SequenceError


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """The step that brought outputs."""

    number: int = 0
    """Counted from 1; 0: none, only refusals came."""
    began_s: float = 0.0
    """`time.monotonic()`, the same clock in all processes of a machine."""
    ended_s: float = 0.0


NO_TURN = Turn()


class Outputs(_Word, frozen=True):
    """What one step brought."""

    outputs: tuple[SequenceOutput, ...]
    turn: Turn = NO_TURN


class Reply(_Word, frozen=True):
    """The answer to the command with this tag."""

    tag: int
    value: JsonObject
    error: SequenceError | None = None


class Loading(_Word, frozen=True):
    """How much of the command with this tag is done, 0 to 1."""

    tag: int
    share: float


Event = Ready | Fatal | Outputs | Reply | Loading

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode  # whatever stands in the details of an error
_decode_commands = msgspec.msgpack.Decoder(tuple[Command, ...]).decode
_decode_events = msgspec.msgpack.Decoder(tuple[Event, ...]).decode


def pack(words: Sequence[Command] | Sequence[Event]) -> bytes:
    """One frame with all of the words."""
    body = _encode(words)
    return _header.pack(len(body)) + body


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that these bytes complete."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _header.size:
            (size,) = _header.unpack_from(buffer, at)
            end = at + _header.size + size
            if len(buffer) < end:
                break
            yield bytes(buffer[at + _header.size : end])
            at = end
        del buffer[:at]


def decode_events(frame: bytes) -> tuple[Event, ...]:
    """The events in a frame."""
    return _decode_events(frame)


class DeviceEnd:
    """The device process' end: blocking. One thread receives; any may send."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._frames = Frames()
        self._sending = threading.Lock()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(self, *events: Event) -> None:
        """Send events as one frame; waits while the other side is behind."""
        with self._sending:
            self._sock.sendall(pack(events))

    def receive(self, timeout_s: float | None) -> list[Command]:
        """The commands that are there, after waiting for some at most this long; None waits without end.

        Raises `EOFError` when the other side is gone.
        """
        commands: list[Command] = []
        timeout_ms = None if timeout_s is None else max(0.0, timeout_s * 1000)
        while self._poll.poll(timeout_ms):
            data = self._sock.recv(_RECEIVE_BYTES)
            if not data:
                raise EOFError("the I/O process is gone")
            for frame in self._frames.feed(data):
                commands += _decode_commands(frame)
            timeout_ms = 0.0 if commands or timeout_ms == 0.0 else timeout_ms
        return commands


def watch_for_hangup(sock: socket.socket, on_hangup: Callable[[], None]) -> None:
    """Block until the other side of the line is closed, without reading from it."""
    poll = select.poll()
    poll.register(sock, 0)  # hang-ups are reported even when nothing is asked for
    while not any(flags & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, flags in poll.poll()):
        pass
    on_hangup()
