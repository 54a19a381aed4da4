"""Clients beyond one connection: what they own, and the answers to their commands until they come to fetch them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

from harmonia import log
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.protocol.instances import (
    Clone,
    Dealloc,
    Hello,
    Load,
    Loaded,
    OptimStep,
    Progress,
    Save,
    Saved,
    SetOptimStep,
    Spawn,
    Spawned,
    Stepped,
    Train,
)
from harmonia.protocol.messages import Done, Failed

MAX_REMEMBERED = 20_000
"""Answers that are kept for a client that may come back for them."""
MAX_RUNNING = 8192
"""Commands of one client that may be in progress; beyond it its connection is not read."""
DEFAULT_TTL_S = 30.0
_MAX_TTL_S = 7 * 86400.0
_MIN_SECRET_CHARS = 16

_log = log.get_logger(__name__)

InstanceChange = Spawn | Clone | Dealloc | Train | OptimStep | SetOptimStep | Save | Load
"""Commands that go on when their connection is lost, and that take effect once however often they are sent."""
ChangeAnswer = Spawned | Stepped | Saved | Loaded | Done
Kept = ChangeAnswer | Failed


class Audience(Protocol):
    """The connection on which an owner is present."""

    def deliver(self, message: Kept | Progress) -> None:
        """Take a message for sending; never waits."""

    def replaced(self) -> None:
        """The same client connected again elsewhere."""


class Changes(Protocol):
    """What carries commands out; see `harmonia.worker.commands.Commands`."""

    async def carry_out(self, owner: Owner, command: InstanceChange) -> ChangeAnswer:
        """Do what a client wants of its instances."""

    def free(self, owner: Owner, name: str) -> None:
        """Deallocate one instance of a client, if it still has it."""

    def free_all(self, owner: Owner) -> None:
        """Deallocate everything of a client that is gone."""


class Owner:
    """A client with its commands. What a command answers is kept, and sent to whoever asks for it under its id."""

    def __init__(self, name: str, ttl_s: float, changes: Changes) -> None:
        self.name = name
        self.ttl_s = ttl_s
        self.audience: Audience | None = None
        self.gone = False
        """It did not come back in time; what still becomes its own is freed at once."""
        self._changes = changes
        self._running: dict[str, asyncio.Task[None]] = {}
        self._answers: OrderedDict[str, Kept] = OrderedDict()
        self._wanted: set[str] = set()
        self._given_up: set[str] = set()
        self._room = asyncio.Event()
        self._room.set()

    def take(self, command: InstanceChange) -> None:
        """Carry a command out, or answer again what was carried out under this id before."""
        request_id = command.id
        answer = self._answers.get(request_id)
        if answer is not None:
            self._deliver(answer)
            return
        self._wanted.add(request_id)
        if request_id not in self._running:
            self._running[request_id] = asyncio.create_task(self._carry_out(command))
            if len(self._running) >= MAX_RUNNING:
                self._room.clear()

    async def room(self) -> None:
        """Wait until one more command may come."""
        await self._room.wait()

    def give_up(self, request_id: str) -> None:
        """Nobody waits for this command any more: what it spawns is freed. Changes of weights are not taken back."""
        self._wanted.discard(request_id)
        answer = self._answers.get(request_id)
        if request_id in self._running:
            self._given_up.add(request_id)
        elif isinstance(answer, Spawned):  # the answer and the cancellation passed each other
            self._changes.free(self, answer.instance.name)

    def wants(self, request_id: str) -> bool:
        """Whether an instance that this command makes is still asked for."""
        return not self.gone and request_id not in self._given_up

    def progress(self, request_id: str, share: float) -> None:
        """A command is that far."""
        if self.audience is not None and request_id in self._wanted:
            self.audience.deliver(Progress(id=request_id, share=min(1.0, max(0.0, share))))

    def detach(self) -> None:
        """Its connection is lost."""
        self.audience = None
        self._wanted.clear()

    def fail_all(self, error: HarmoniaError) -> None:
        """End every command with an error."""
        for request_id in list(self._running):
            self._keep(request_id, _failed(request_id, error))

    async def _carry_out(self, command: InstanceChange) -> None:
        request_id = command.id
        try:
            answer: Kept = await self._changes.carry_out(self, command)
        except HarmoniaError as error:
            answer = _failed(request_id, error)
        except asyncio.CancelledError:
            raise
        except BaseException:  # noqa: BLE001 - ours or a library's (its panics are no Exception), it must be told
            _log.exception("command %s failed", request_id)
            answer = _failed(request_id, HarmoniaError("internal error of the worker; its log says more"))
        self._keep(request_id, answer)

    def _keep(self, request_id: str, answer: Kept) -> None:
        if self._running.pop(request_id, None) is None:
            return  # failed with all others already
        self._room.set()
        self._given_up.discard(request_id)
        self._answers[request_id] = answer
        if request_id in self._wanted:
            self._wanted.discard(request_id)
            self._deliver(answer)
        # While it is away nothing is forgotten: it may come for any of them.
        while len(self._answers) > MAX_REMEMBERED and self.audience is not None:
            self._answers.popitem(last=False)

    def _deliver(self, answer: Kept) -> None:
        if self.audience is not None:
            self.audience.deliver(answer)


class Owners:
    """All clients that own something or may come back."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._by_secret: dict[str, Owner] = {}
        self._owners: set[Owner] = set()
        self._timers: dict[Owner, asyncio.TimerHandle] = {}

    def welcome(self, hello: Hello, audience: Audience) -> tuple[Owner, bool]:
        """The client of that secret, and whether it was known. Its older connection is closed."""
        if len(hello.client) < _MIN_SECRET_CHARS:
            message = f"client must be a secret of at least {_MIN_SECRET_CHARS} characters, got {len(hello.client)}"
            raise InvalidRequestError(message, field="client")
        if not 0 <= hello.ttl_after_disconnect_s <= _MAX_TTL_S:
            message = f"ttl_after_disconnect_s must be between 0 and {_MAX_TTL_S:g}, got {hello.ttl_after_disconnect_s}"
            raise InvalidRequestError(message, field="ttl_after_disconnect_s")
        owner = self._by_secret.get(hello.client)
        known = owner is not None
        if owner is None:
            owner = self._by_secret[hello.client] = self._new(hello.name)
        previous = owner.audience
        if previous is not None:
            owner.detach()
            previous.replaced()
        timer = self._timers.pop(owner, None)
        if timer is not None:
            timer.cancel()
        owner.audience, owner.ttl_s = audience, hello.ttl_after_disconnect_s
        _log.info("client %s %s", hello.name or "without a name", "is back" if known else "connected")
        return owner, known

    def anonymous(self, audience: Audience) -> Owner:
        """A client that did not say who it is."""
        owner = self._new("")
        owner.audience = audience
        return owner

    def leave(self, owner: Owner, audience: Audience) -> None:
        """A connection of a client is lost; what it owns lives on for a while."""
        if owner.audience is audience:
            owner.detach()
            self._timers[owner] = asyncio.get_running_loop().call_later(owner.ttl_s, self._bury, owner)

    def close(self, error: HarmoniaError) -> None:
        """End every command with an error, and forget everybody."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for owner in self._owners:
            owner.fail_all(error)

    def _new(self, name: str) -> Owner:
        owner = Owner(name, DEFAULT_TTL_S, self._changes)
        self._owners.add(owner)
        return owner

    def _bury(self, owner: Owner) -> None:
        owner.gone = True
        self._timers.pop(owner, None)
        self._owners.discard(owner)
        self._by_secret = {secret: other for secret, other in self._by_secret.items() if other is not owner}
        _log.info("client %s did not come back in %g s", owner.name or "without a name", owner.ttl_s)
        self._changes.free_all(owner)


def _failed(request_id: str, error: HarmoniaError) -> Failed:
    return Failed(id=request_id, code=error.code, message=error.message, details=dict(error.details))
