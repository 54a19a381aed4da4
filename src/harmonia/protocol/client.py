"""The client side of the worker protocol: many requests over one WebSocket.

One task reads, one writes. Deltas go to the `Stream` of their request without a task per token; a stream whose consumer
falls behind is paused in the worker. A lost connection ends every open request with `WorkerLostError`, unless the
client said `Hello`: then it connects again under the same secret and repeats what is unanswered under the same ids.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from harmonia.errors import DeadlineExceededError, HarmoniaError, InvalidRequestError, WorkerLostError, from_code
from harmonia.log import get_logger
from harmonia.protocol.dial import Address, dial, read_frame
from harmonia.protocol.instances import Hello, Progress
from harmonia.protocol.messages import (
    Cancel,
    ClientMessage,
    Delta,
    Failed,
    Finished,
    Generate,
    Pause,
    Resume,
    Step,
    WorkerMessage,
    encode,
)

log = get_logger(__name__)

Event = Delta | Finished
Reply = TypeVar("Reply", bound=msgspec.Struct)

PAUSE_AT_EVENTS = 256
"""Unread events per answer at which a request is paused."""
MAX_MESSAGE_BYTES = 64 << 20
"""Largest message that a worker takes."""
_FINAL_CODES = frozenset({1002, 1003, 1007, 1008, 1009, 4001})
"""Codes of closing that say that this client did wrong, or lives elsewhere: connecting again would repeat it."""


class Stream:
    """Events of one or several `Generate` requests, in the order in which the worker sent them."""

    def __init__(self, requests: tuple[Generate, ...], send: Callable[[ClientMessage], None]) -> None:
        self.model = requests[0].model
        """Which answers, the same for all."""
        self._open = {request.id for request in requests}
        self._pause_at = PAUSE_AT_EVENTS * sum(request.n for request in requests)
        self._send = send
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: HarmoniaError | None = None
        self._paused = False
        self.started = False
        """Whether any event came."""

    async def next_events(self) -> list[Event]:
        """All events that came since the last call, at least one; empty when every request is complete.

        Raises the error with which a request failed, after the events that came before it.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            if not self._open:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        events = list(self._events)
        self._events.clear()
        if self._paused:
            self._paused = False
            self._tell(Resume)
        return events

    def cancel(self) -> None:
        """Stop what is still running and free its blocks; safe to call at any time."""
        self._tell(Cancel)
        self._open.clear()
        self._wake()

    def push(self, event: Event) -> None:
        """Take in an event of one of the requests."""
        if event.id not in self._open:
            return
        self.started = True
        self._events.append(event)
        if isinstance(event, Finished):
            self._open.discard(event.id)
        elif len(self._events) >= self._pause_at and not self._paused:
            self._paused = True
            self._tell(Pause)
        self._wake()

    def fail(self, error: HarmoniaError, failed_id: str | None = None) -> None:
        """End the stream with an error; requests other than the failed one are cancelled."""
        if not self._open:
            return
        if failed_id is not None:
            self._open.discard(failed_id)
        self._error = error
        self.cancel()

    def _tell(self, kind: type[Cancel] | type[Pause] | type[Resume]) -> None:
        for request_id in self._open:
            self._send(kind(id=request_id))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Pending(asyncio.Future[WorkerMessage]):
    """The answer to a request that has one."""

    on_progress: Callable[[float], None] | None = None


class WorkerClient:
    """A connection to one worker. Make it with `connect`."""

    def __init__(self, address: Address, connection: ClientConnection) -> None:
        self._address = address
        self._connection = connection
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._streams: dict[str, Stream] = {}
        self._replies: dict[str, _Pending] = {}
        self._unanswered: dict[str, bytes] = {}
        """Frames of requests in the order of sending, kept where they may have to be sent again."""
        self._lost: HarmoniaError | None = None
        self._closing = False
        self.closed = asyncio.Event()
        """Set once the connection is gone for good."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def connect(
        cls, place: str, timeout_s: float = 10.0, hello: Hello | None = None, headers: Mapping[str, str] | None = None
    ) -> WorkerClient:
        """Connect to the worker that listens on a Unix socket or on `ws://host:port`.

        Retries until it does; WorkerLostError when the time is up. With `hello` the connection is resumed whenever it
        breaks, for `hello.ttl_after_disconnect_s` at most. `headers` go into the handshake.
        """
        address = Address(place=place, headers=headers or {}, hello=hello)
        connection, _ = await dial(address, timeout_s)
        return cls(address, connection)

    @property
    def num_open(self) -> int:
        """Requests in flight."""
        return len(self._streams) + len(self._replies)

    @property
    def num_streams(self) -> int:
        """Generations in flight."""
        return len(self._streams)

    def is_busy_with(self, model: str) -> bool:
        """Whether generations of a model are in flight."""
        return any(stream.model == model for stream in self._streams.values())

    def generate(self, *requests: Generate) -> Stream:
        """Send the requests and return the stream of all their events."""
        self._check_alive()
        frames = [_frame(request) for request in requests]
        stream = Stream(requests, self._send_unless_lost)
        for request, frame in zip(requests, frames, strict=True):
            self._streams[request.id] = stream
            self._send_request(request.id, frame)
        return stream

    def submit(
        self, message: ClientMessage, on_progress: Callable[[float], None] | None = None
    ) -> asyncio.Future[WorkerMessage]:
        """Send a message that has one answer; the answer, or the error with which it failed, comes as a future.

        `on_progress` gets the shares that are done, where the worker reports them.
        """
        self._check_alive()
        frame = _frame(message)
        pending = self._replies[message.id] = _Pending(loop=self._loop)
        pending.on_progress = on_progress
        self._send_request(message.id, frame)
        return pending

    async def request(
        self,
        message: ClientMessage,
        reply: type[Reply],
        timeout_s: float | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Reply:
        """Send a message that has one answer and return that answer.

        Raises what the worker answered with `Failed`, and `DeadlineExceededError` after `timeout_s` (None waits as long
        as it takes). When the caller is cancelled, so is the request.
        """
        future = self.submit(message, on_progress)
        try:
            answer = await asyncio.wait_for(future, timeout_s)
        except TimeoutError as error:
            self._send_unless_lost(Cancel(id=message.id))
            raise DeadlineExceededError(
                f"the worker did not answer within {timeout_s:g} s; raise ADAPTIVE_HTTP_CLIENT__TIMEOUT_SECS",
                limit="ADAPTIVE_HTTP_CLIENT__TIMEOUT_SECS",
            ) from error
        except asyncio.CancelledError:
            self._send_unless_lost(Cancel(id=message.id))
            raise
        finally:
            self._forget(message.id)
        if not isinstance(answer, reply):
            raise HarmoniaError(f"the worker answered {type(answer).__name__} where {reply.__name__} was due")
        return answer

    def abort(self, error: HarmoniaError) -> None:
        """End every open request with this error and cancel it in the worker."""
        for stream in set(self._streams.values()):
            stream.fail(error)
        for future in self._replies.values():
            if not future.done():
                future.set_exception(error)

    async def close(self) -> None:
        """Close the connection; open requests end with `WorkerLostError`."""
        self._closing = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._connection.close()

    # ------------------------------------------------------------------------------------------------ sending

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _send_request(self, request_id: str, frame: bytes) -> None:
        if self._address.hello is not None:
            self._unanswered[request_id] = frame
        self._outbox.put_nowait(frame)

    def _send_unless_lost(self, message: ClientMessage) -> None:
        if isinstance(message, Cancel):
            self._streams.pop(message.id, None)
            self._unanswered.pop(message.id, None)
        if self._lost is None:
            self._outbox.put_nowait(encode(message))

    def _forget(self, request_id: str) -> None:
        self._replies.pop(request_id, None)
        self._unanswered.pop(request_id, None)

    # ------------------------------------------------------------------------------------------- the connection

    async def _run(self) -> None:
        """Carry messages over one connection after the other."""
        lost = WorkerLostError("the connection was closed by this side; connect again")
        try:
            while True:
                broken = await self._carry()
                if self._address.hello is None:
                    lost = WorkerLostError(f"{broken}; the request may be sent again")
                    return
                await self._resume(self._address.hello, broken)
        except HarmoniaError as error:
            lost = WorkerLostError(error.message)
            log.error("%s", error)
        finally:
            self._lost = lost
            self.abort(lost)
            self.closed.set()
            if not self._closing:  # the loop may be about to end, so nothing can be said any more
                self._connection.transport.abort()

    async def _carry(self) -> str:
        """Carry messages until the connection breaks; returns how it did."""
        writer = asyncio.create_task(self._write())
        try:
            async for frame in self._connection:
                self._dispatch(read_frame(frame))
        except ConnectionClosed as error:
            if error.rcvd is not None and error.rcvd.code in _FINAL_CODES:
                raise WorkerLostError(f"the worker ended the connection: {error}") from error
            return f"the connection to the worker broke: {error}"
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        return "the worker closed its connection"

    async def _write(self) -> None:
        try:
            while True:
                await self._connection.send(await self._outbox.get())
        except ConnectionClosed:
            # The reader sees the same end and tells every request.
            return

    async def _resume(self, hello: Hello, broken: str) -> None:
        """Connect again and repeat what is unanswered; answers that had begun to arrive end with an error."""
        log.warning("%s; connecting again", broken)
        for stream in set(self._streams.values()):
            if stream.started:
                stream.fail(WorkerLostError(f"{broken}; what was generated so far is lost, ask again"))
        connection, welcome = await dial(self._address, hello.ttl_after_disconnect_s)
        self._connection = connection
        if welcome is None or not welcome.resumed:
            await connection.close()
            raise WorkerLostError(f"{broken}; the worker has forgotten this client and its instances: spawn them again")
        waiting = [self._outbox.get_nowait() for _ in range(self._outbox.qsize())]
        again = set(self._unanswered.values())
        for frame in (*self._unanswered.values(), *(frame for frame in waiting if frame not in again)):
            self._outbox.put_nowait(frame)

    # ---------------------------------------------------------------------------------------------- receiving

    def _dispatch(self, message: WorkerMessage) -> None:
        if isinstance(message, Step):
            for delta in message.deltas:
                stream = self._streams.get(delta.id)
                if stream is not None:
                    stream.push(delta)
            return
        pending = self._replies.get(message.id)
        if isinstance(message, Progress):
            if pending is not None and pending.on_progress is not None:
                pending.on_progress(message.share)
            return
        self._forget(message.id)
        stream = self._streams.pop(message.id, None)
        if stream is not None:
            _end(stream, message)
        if pending is not None and not pending.done():
            _resolve(pending, message)


def _end(stream: Stream, message: WorkerMessage) -> None:
    if isinstance(message, Finished):
        stream.push(message)
    elif isinstance(message, Failed):
        stream.fail(from_code(message.code, message.message, message.details), message.id)


def _resolve(future: asyncio.Future[WorkerMessage], message: WorkerMessage) -> None:
    if isinstance(message, Failed):
        future.set_exception(from_code(message.code, message.message, message.details))
    else:
        future.set_result(message)


def _frame(message: ClientMessage) -> bytes:
    try:
        frame = encode(message)
    except OverflowError as error:
        raise InvalidRequestError("the request holds an integer of more than 64 bits") from error
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"the request holds a text that is not Unicode: {error}") from error
    if len(frame) > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"the request has {len(frame)} bytes, a worker takes at most {MAX_MESSAGE_BYTES}; send less at once"
        )
    return frame
