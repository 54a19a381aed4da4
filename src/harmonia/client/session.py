"""A client's session on a worker, and the instances that it owns there."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from harmonia.errors import HarmoniaError, InvalidRequestError, UnavailableError
from harmonia.log import get_logger
from harmonia.protocol.client import Stream, WorkerClient
from harmonia.protocol.instances import Dealloc, InstanceInfo, Spawned
from harmonia.protocol.messages import ClientMessage, Done, Generate, WorkerMessage

log = get_logger(__name__)

Reply = TypeVar("Reply", bound=msgspec.Struct)

StepObserver = Callable[[str, Mapping[str, float]], None]
"""Takes the name of a model and what `optim_step` returned, with the number of steps done as `optim_step`, and as
`per_token` whether the loss is a sum over tokens (1) or one per sample or pair (0)."""
SpawnObserver = Callable[[str, float], None]
"""Takes the name of a model that is being made and the share that is done."""

_FREE_TIMEOUT_S = 5.0
_MOST_QUEUED = 512
"""Requests of one client that the engine may have at once: enough to keep it busy, and its queue, which others use
as well and which refuses what does not fit, never fills up."""


class Session:
    """The connection of one client, with ids for its requests and the names of its instances."""

    def __init__(self, link: WorkerClient, loop: asyncio.AbstractEventLoop) -> None:
        self.link = link
        self.loop = loop
        self.owned: set[str] = set()
        """Names of the instances that this client spawned and has not freed."""
        self.observers: list[StepObserver] = []
        """Called after every optimizer step."""
        self.spawn_observers: list[SpawnObserver] = []
        """Called while an instance is made."""
        self.places = asyncio.Semaphore(_MOST_QUEUED)
        """Held while a request that generates or scores is on its way; thousands may be made at once."""
        self._ids = itertools.count(1)
        self._garbage: deque[str] = deque()
        self._closed = False

    def new_id(self) -> str:
        """An id never used before on this connection."""
        return f"r{next(self._ids)}"

    async def ask(
        self, message: ClientMessage, reply: type[Reply], on_progress: Callable[[float], None] | None = None
    ) -> Reply:
        """Send a command and return its answer, however long it takes."""
        self._check_open()
        return await self.link.request(message, reply, on_progress=on_progress)

    async def make(
        self, message: ClientMessage, name: str, on_progress: Callable[[float], None] | None = None
    ) -> Instance:
        """Send a command that makes an instance, and own what it made."""
        try:
            spawned = await self.ask(message, Spawned, lambda share: self._tell(name, share, on_progress))
        except asyncio.CancelledError:
            if name not in self.owned and self._is_alive():
                self.submit(Dealloc(id=self.new_id(), instance=name))  # it may be there already, held by nobody
            raise
        return Instance(self, spawned.instance)

    def _tell(self, name: str, share: float, on_progress: Callable[[float], None] | None) -> None:
        for observer in self.spawn_observers:
            observer(name, share)
        if on_progress is not None:
            on_progress(share)

    def generate(self, request: Generate) -> Stream:
        """Begin to generate."""
        self._check_open()
        return self.link.generate(request)

    def submit(self, message: ClientMessage) -> asyncio.Future[WorkerMessage]:
        """Send a command without waiting; a failure that nobody looks at is logged."""
        self._check_open()
        future = self.link.submit(message)
        # What could not be freed is gone already.
        future.add_done_callback(_ignore if isinstance(message, Dealloc) else _log_failure)
        return future

    def free_soon(self, name: str) -> None:
        """Free an instance; callable from any thread, never waits and never raises."""
        # The garbage collector may call this in the middle of anything, so it only leaves a note.
        self._garbage.append(name)
        with suppress(RuntimeError):  # the loop has ended, and with it the connection
            self.loop.call_soon_threadsafe(self._sweep)

    def _sweep(self) -> None:
        """Free what nobody holds any more: before every command, so that its name can be given again."""
        while self._garbage:
            name = self._garbage.popleft()
            if name in self.owned and self._is_alive():
                self.owned.discard(name)
                self.submit(Dealloc(id=self.new_id(), instance=name))

    async def close(self) -> None:
        """Free all instances and close the connection."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._free_all()
        finally:
            await self.link.close()

    async def _free_all(self) -> None:
        """Free all instances; a worker that does not answer does it when their time to live is over."""
        if self.link.closed.is_set():
            return
        freed = [self.link.submit(Dealloc(id=self.new_id(), instance=name)) for name in self.owned]
        self.owned.clear()
        for future in freed:
            future.add_done_callback(_ignore)
        if freed:
            await asyncio.wait(freed, timeout=_FREE_TIMEOUT_S)

    def _is_alive(self) -> bool:
        return not self._closed and not self.link.closed.is_set()

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("this client was closed; make another one with get_client")
        if self._is_elsewhere():
            raise InvalidRequestError(
                "this client was made in another event loop; use it where get_client was awaited, within the same "
                "asyncio.run() and in the same thread, or make another one here"
            )
        self._sweep()

    def _is_elsewhere(self) -> bool:
        try:
            return asyncio.get_running_loop() is not self.loop
        except RuntimeError:  # no loop runs at the moment
            return False


class Instance:
    """An instance on the worker. Every model object that stands for it shares this; it is freed with the last one."""

    def __init__(self, session: Session, info: InstanceInfo) -> None:
        self.session = session
        self.info = info
        self.optim_step = info.optim_step
        """Steps done."""
        self.is_token_loss = True
        """What was trained since the last step has a loss per weighted token, and none per sample or pair."""
        self._is_freed = False
        session.owned.add(info.name)
        self._finalizer = weakref.finalize(self, session.free_soon, info.name)
        self._finalizer.atexit = False

    @property
    def name(self) -> str:
        """Its name on the worker."""
        return self.info.name

    def command(self, kind: Callable[..., ClientMessage], **fields: Any) -> ClientMessage:
        """A command about this instance. InvalidRequestError once it is freed."""
        self.check()
        return kind(id=self.session.new_id(), instance=self.name, **fields)

    async def ask(self, kind: Callable[..., ClientMessage], reply: type[Reply], **fields: Any) -> Reply:
        """Send a command about this instance and return its answer."""
        return await self.session.ask(self.command(kind, **fields), reply)

    async def free(self) -> None:
        """Free it; more often than once does nothing."""
        if self._is_freed:
            return
        message = self.command(Dealloc)
        self._is_freed = True
        self._finalizer.detach()
        self.session.owned.discard(self.name)
        await self.session.ask(message, Done)

    def check(self) -> None:
        """InvalidRequestError once it is freed."""
        if self._is_freed:
            raise InvalidRequestError(f"model '{self.name}' was deallocated; spawn it again")


def _ignore(future: asyncio.Future[WorkerMessage]) -> None:
    if not future.cancelled():
        future.exception()


def _log_failure(future: asyncio.Future[WorkerMessage]) -> None:
    error = None if future.cancelled() else future.exception()
    if isinstance(error, HarmoniaError):
        log.warning("%s", error)
