"""The client side of the worker protocol: many requests over one WebSocket on a Unix socket.

One task reads, one writes. Deltas go to the `Stream` of their request without a task per token; a stream whose consumer
falls behind is paused in the worker, and a lost connection ends every open request with `WorkerLostError`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import msgspec
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from harmonia.errors import DeadlineExceededError, HarmoniaError, InvalidRequestError, WorkerLostError, from_code
from harmonia.log import get_logger
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
    decode_worker_message,
    encode,
)

log = get_logger(__name__)

Event = Delta | Finished
Reply = TypeVar("Reply", bound=msgspec.Struct)

PAUSE_AT_EVENTS = 256
"""Unread events per answer at which a request is paused."""
_CONNECT_RETRY_S = 0.05


class Stream:
    """Events of one or several `Generate` requests, in the order in which the worker sent them."""

    def __init__(self, requests: tuple[Generate, ...], send: Callable[[ClientMessage], None]) -> None:
        self._open = {request.id for request in requests}
        self._pause_at = PAUSE_AT_EVENTS * sum(request.n for request in requests)
        self._send = send
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: HarmoniaError | None = None
        self._paused = False

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


class WorkerClient:
    """A connection to one worker. Make it with `connect`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._streams: dict[str, Stream] = {}
        self._replies: dict[str, asyncio.Future[WorkerMessage]] = {}
        self._lost: HarmoniaError | None = None
        self.closed = asyncio.Event()
        """Set once the connection is gone."""
        self._tasks = (asyncio.create_task(self._read()), asyncio.create_task(self._write()))

    @classmethod
    async def connect(cls, socket_path: str, timeout_s: float = 10.0) -> WorkerClient:
        """Connect to the worker that listens on a Unix socket; retries until it does or the time is up."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                # Compression and keep-alive pings cost time and protect nothing on a socket of this machine.
                return cls(
                    await unix_connect(
                        socket_path, "ws://worker/", compression=None, max_size=None, ping_interval=None, proxy=None
                    )
                )
            except (OSError, InvalidHandshake, TimeoutError) as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise WorkerLostError(f"no worker answers on {socket_path}: {error}") from error
                await asyncio.sleep(_CONNECT_RETRY_S)

    @property
    def num_open(self) -> int:
        """Requests in flight."""
        return len(self._streams) + len(self._replies)

    def generate(self, *requests: Generate) -> Stream:
        """Send the requests and return the stream of all their events."""
        self._check_alive()
        frames = [_frame(request) for request in requests]
        stream = Stream(requests, self._send_unless_lost)
        for request, frame in zip(requests, frames, strict=True):
            self._streams[request.id] = stream
            self._outbox.put_nowait(frame)
        return stream

    async def request(self, message: ClientMessage, reply: type[Reply], timeout_s: float) -> Reply:
        """Send a message that has one answer and return that answer.

        Raises what the worker answered with `Failed`, and `DeadlineExceededError` after `timeout_s`. When the caller is
        cancelled, so is the request.
        """
        self._check_alive()
        frame = _frame(message)
        future: asyncio.Future[WorkerMessage] = asyncio.get_running_loop().create_future()
        self._replies[message.id] = future
        self._outbox.put_nowait(frame)
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
            self._replies.pop(message.id, None)
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
        await self._connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _check_alive(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _send_unless_lost(self, message: ClientMessage) -> None:
        if isinstance(message, Cancel):
            self._streams.pop(message.id, None)
        if self._lost is None:
            self._outbox.put_nowait(encode(message))

    async def _write(self) -> None:
        try:
            while True:
                await self._connection.send(await self._outbox.get())
        except ConnectionClosed:
            # The reader sees the same end and tells every request.
            return

    async def _read(self) -> None:
        reason = "the worker closed its connection"
        try:
            async for frame in self._connection:
                self._dispatch(decode_worker_message(frame if isinstance(frame, bytes) else frame.encode()))
        except ConnectionClosed as error:
            reason = f"the connection to the worker broke: {error}"
        except msgspec.MsgspecError as error:
            reason = f"the worker sent a message that is not of this protocol: {error}"
            log.error("%s", reason)
        finally:
            self._lost = WorkerLostError(f"{reason}; the request may be sent again")
            self.abort(self._lost)
            self.closed.set()

    def _dispatch(self, message: WorkerMessage) -> None:
        if isinstance(message, Step):
            for delta in message.deltas:
                stream = self._streams.get(delta.id)
                if stream is not None:
                    stream.push(delta)
            return
        stream = self._streams.pop(message.id, None)
        if stream is not None:
            _end(stream, message)
        future = self._replies.get(message.id)
        if future is not None and not future.done():
            _resolve(future, message)


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
        return encode(message)
    except OverflowError as error:
        raise InvalidRequestError("the request holds an integer of more than 64 bits") from error
