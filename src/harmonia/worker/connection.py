"""One client's connection: its requests, the messages that wait for it, and what happens when it is slow or gone."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from harmonia import log
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.protocol.instances import (
    Detokenized,
    Hello,
    ModelDescription,
    PlainText,
    Planned,
    Progress,
    Score,
    Scored,
    TokenIds,
    Tokenized,
    Welcome,
)
from harmonia.protocol.messages import (
    PROTOCOL_VERSION,
    Cancel,
    ClientMessage,
    Delta,
    Description,
    Done,
    Embed,
    Embedded,
    Failed,
    Finished,
    Generate,
    Pause,
    Resume,
    Stats,
    Step,
    WorkerMessage,
    decode_client_message,
    encode,
)
from harmonia.worker.owners import InstanceChange, Kept, Owner, Owners
from harmonia.worker.streams import Client, Streams, Work, failure

# Deltas that may wait for a slow client before the engine stops working for it.
MAX_PENDING = 4096
_MAX_REMEMBERED = 10_000
_CLOSE_INVALID = 1007
_CLOSE_REPLACED = 4001

_log = log.get_logger(__name__)


Reply = Done | Description | Stats | Planned | ModelDescription | Tokenized | TokenIds | Detokenized | PlainText
Outgoing = Delta | Finished | Failed | Embedded | Scored | Welcome | Progress | Kept | Reply


class Service(Protocol):
    """What answers requests."""

    @property
    def streams(self) -> Streams:
        """Requests in progress."""

    @property
    def owners(self) -> Owners:
        """Clients that own instances."""

    async def begin(self, request: Generate | Embed | Score, client: Client, arrival_s: float) -> Work:
        """Start a request that goes on after this returns."""

    async def answer(self, command: ClientMessage) -> Reply:
        """The answer to a command."""


class Connection:
    """A client and its requests. Ids are its own; a repeated id is not answered twice.

    What changes instances belongs to the client's owner, which may outlive the connection; all else ends with it.
    """

    def __init__(self, socket: ServerConnection, service: Service) -> None:
        self._socket = socket
        self._service = service
        self._streams = service.streams
        self._pending: list[Outgoing] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._work: dict[str, Work] = {}
        self._paused: set[str] = set()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._held = False
        self._owner: Owner | None = None
        self._closing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until the client leaves; then all of its work is cancelled."""
        sender = asyncio.create_task(self._send())
        try:
            async for data in self._socket:
                if not self._receive(data):
                    await self._socket.close(_CLOSE_INVALID, "not a message of the protocol")
                    break
                if self._owner is not None:
                    await self._owner.room()
        except ConnectionClosed as error:
            _log.debug("connection closed: %s", error)
        finally:
            sender.cancel()
            self._abandon()

    def deliver(self, message: Outgoing) -> None:
        """Take a message for sending; all of one turn of the event loop leave together."""
        self._pending.append(message)
        self._wake.set()
        self._idle.clear()
        if not isinstance(message, Delta):
            self._forget(message.id)
        elif len(self._pending) > MAX_PENDING and not self._held:
            self._held = True
            for work in self._work.values():
                self._streams.hold(work)

    def replaced(self) -> None:
        """Its client has connected again: this connection is over."""
        self._owner = None
        self._closing = asyncio.create_task(self._socket.close(_CLOSE_REPLACED, "the client connected again"))

    async def drained(self) -> None:
        """Wait until every message so far was sent."""
        await self._idle.wait()

    # --------------------------------------------------------------------------------------------- sending

    async def _send(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                messages, self._pending = self._pending, []
                for message in _grouped(messages):
                    await self._socket.send(encode(message))
                if not self._pending:
                    self._idle.set()
                    self._go_on()
        except ConnectionClosed as error:
            _log.debug("connection closed while sending: %s", error)
        finally:
            self._idle.set()
            self._socket.transport.close()

    def _go_on(self) -> None:
        """The client caught up."""
        if self._held:
            self._held = False
            for request_id, work in self._work.items():
                if request_id not in self._paused:
                    self._streams.release(work)

    # ------------------------------------------------------------------------------------------- receiving

    def _receive(self, data: str | bytes) -> bool:
        """Act on a message; False if it is none at all."""
        if isinstance(data, str):
            return False
        try:
            message = decode_client_message(data)
        except msgspec.ValidationError as error:
            return self._refuse(data, error)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return False
        match message:
            case Cancel():
                self._cancel(message.id)
            case Pause():
                self._pause(message.id)
            case Resume():
                self._resume(message.id)
            case _ if message.id not in self._seen:
                self._remember(message.id)
                self._start(message)
        return True

    def _refuse(self, data: bytes, error: msgspec.ValidationError) -> bool:
        """A message of the wrong shape is answered if it says which request it was."""
        try:
            request_id = msgspec.msgpack.decode(data, type=_Identified).id
        except (msgspec.DecodeError, RecursionError):
            return False
        self.deliver(failure(request_id, InvalidRequestError(f"malformed message: {error}")))
        return True

    def _remember(self, request_id: str) -> None:
        self._seen[request_id] = None
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)

    def _start(self, message: ClientMessage) -> None:
        """Begin what a message asks for. Tasks begin in the order in which they are made, and so of messages."""
        match message:
            case Hello():
                self._greet(message)
            case message if isinstance(message, InstanceChange):
                if self._owner is None:
                    self._owner = self._service.owners.anonymous(self)
                self._owner.take(message)
            case _:
                starting = self._starting[message.id] = asyncio.create_task(self._guarded(message))
                starting.add_done_callback(lambda _: self._starting.pop(message.id, None))

    def _greet(self, hello: Hello) -> None:
        try:
            if self._owner is not None:
                raise InvalidRequestError("Hello must come first, and once, on a connection")
            self._owner, known = self._service.owners.welcome(hello, self)
        except HarmoniaError as error:
            self.deliver(failure(hello.id, error))
            return
        self.deliver(Welcome(id=hello.id, protocol_version=PROTOCOL_VERSION, resumed=known))

    async def _guarded(self, message: ClientMessage) -> None:
        request_id = message.id
        try:
            if isinstance(message, Generate | Embed | Score):
                await self._begin(message)
            else:
                self.deliver(await self._service.answer(message))
        except HarmoniaError as error:
            self.deliver(failure(request_id, error))
        except asyncio.CancelledError:
            raise
        except BaseException:  # noqa: BLE001 - ours or a library's (its panics are no Exception), it must be told
            _log.exception("request %s failed", request_id)
            self.deliver(failure(request_id, HarmoniaError("internal error of the worker; its log says more")))

    async def _begin(self, request: Generate | Embed | Score) -> None:
        work = await self._service.begin(request, self, time.monotonic())
        self._work[request.id] = work
        if self._held or request.id in self._paused:
            self._streams.hold(work)

    # ------------------------------------------------------------------------------------- request control

    def _cancel(self, request_id: str) -> None:
        if self._owner is not None:
            self._owner.give_up(request_id)
        starting, work = self._starting.get(request_id), self._work.get(request_id)
        if starting is not None:
            starting.cancel()
        if work is not None:
            self._streams.cancel(work)
        self._pending = [message for message in self._pending if message.id != request_id]
        self._forget(request_id)

    def _pause(self, request_id: str) -> None:
        if request_id in self._work or request_id in self._starting:
            self._paused.add(request_id)
        if request_id in self._work:
            self._streams.hold(self._work[request_id])

    def _resume(self, request_id: str) -> None:
        self._paused.discard(request_id)
        if request_id in self._work and not self._held:
            self._streams.release(self._work[request_id])

    def _forget(self, request_id: str) -> None:
        self._work.pop(request_id, None)
        self._paused.discard(request_id)

    def _abandon(self) -> None:
        """The client is gone: cancel everything but what changes instances."""
        if self._owner is not None:
            self._service.owners.leave(self._owner, self)
        for starting in self._starting.values():
            starting.cancel()
        for work in self._work.values():
            self._streams.cancel(work)
        self._work.clear()


class _Identified(msgspec.Struct):
    """The one field that all messages have."""

    id: str


def _grouped(messages: Iterable[Outgoing]) -> Iterator[WorkerMessage]:
    """All deltas in one message, then the others; no request's end overtakes its deltas."""
    messages = list(messages)
    deltas = tuple(message for message in messages if isinstance(message, Delta))
    if deltas:
        yield Step(deltas=deltas)
    for message in messages:
        if not isinstance(message, Delta):
            yield message
