"""One base model and the adapters beside it: moves what runs toward what is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harmonia.config import WorkerConfig
from harmonia.errors import HarmoniaError, InsufficientMemoryError, InvalidRequestError
from harmonia.log import get_logger
from harmonia.protocol.fleet import Fleet, WorkerFailure, WorkerState
from harmonia.router import Router

log = get_logger(__name__)

DRAIN_S = 600.0
"""How long a worker that was replaced may finish its answers."""
STOP_DRAIN_S = 20.0
"""And one whose model is no longer wanted."""
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a base model shall run, and which adapters beside it."""

    config: WorkerConfig
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Folder by key."""


@dataclass(frozen=True, slots=True)
class Observed:
    """How a model fares."""

    online: str
    error: str | None = None


PENDING, OFFLINE = Observed("PENDING"), Observed("OFFLINE")


def together(several: Sequence[Observed]) -> Observed:
    """How a model fares that runs in several pools: online if it is so anywhere, with what is wrong elsewhere."""
    order = ("ONLINE", "PENDING", "ERROR")
    best = min(several, key=lambda observed: order.index(observed.online))
    errors = dict.fromkeys(observed.error for observed in several if observed.error is not None)
    return Observed(best.online, "; ".join(errors) or None)


class _OutdatedError(Exception):
    """What is being done is no longer wanted."""


class Backbone:
    """The workers of one base model.

    Crashed workers are the fleet's to restart. A changed configuration starts a second worker, which takes over when it
    is ready; where both do not fit at once the first is ended before. What cannot run leaves what ran before.
    """

    def __init__(self, fleet: Fleet, router: Router, wanted: Wanted, changed: Callable[[], None]) -> None:
        """changed: called whenever `observed` may be different."""
        self._fleet, self._router, self._changed = fleet, router, changed
        self._key = wanted.config.key
        self._wanted: Wanted | None = wanted
        self._replica: str | None = None
        self._config: WorkerConfig | None = None
        self._refused: WorkerConfig | None = None
        self._complaint: str | None = None
        """Why the configuration in `_refused` does not run."""
        self._refused_adapters: dict[str, str] = {}
        self._unloading: set[str] = set()
        """Adapters that are about to be gone, whatever the worker still says."""
        self._news = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._told: dict[str, Observed] = {}
        self._task = asyncio.create_task(self._run())

    @property
    def wanted(self) -> Wanted | None:
        """How it shall run now; None: not at all."""
        return self._wanted

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing is wanted."""
        return self._task.done()

    @property
    def is_online(self) -> bool:
        """Whether it answers, and what is beside it too, as far as it can."""
        observed = self.observed()
        return bool(observed) and observed[self._key].online == "ONLINE" and PENDING not in observed.values()

    def want(self, wanted: Wanted | None) -> None:
        """Run it like this from now on; None: not at all."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._refused_adapters.clear()
            self._news.set()

    def retry(self) -> None:
        """Try again what did not run."""
        self._refused, self._complaint = None, None
        self._refused_adapters.clear()
        self._news.set()

    def observed(self) -> dict[str, Observed]:
        """The base model and its adapters as they fare now."""
        if self._wanted is None:
            return {}
        base = self._observed_base()
        found = {self._key: base}
        for key in self._wanted.adapters:
            refusal = self._refused_adapters.get(key)
            if refusal is not None:
                found[key] = Observed("ERROR", refusal)
            elif base.online == "ONLINE":
                found[key] = Observed("ONLINE") if self._has(key) else PENDING
            else:
                found[key] = base
        return found

    def _has(self, adapter: str) -> bool:
        """Whether an adapter is loaded on the worker that serves, and stays."""
        if adapter in self._unloading:
            return False
        worker = None if self._replica is None else self._router.find(self._replica)
        return worker is not None and any(model.key == adapter for model in worker.description.models)

    async def close(self) -> None:
        """Stop following; the fleet ends the workers."""
        tasks = left = {self._task, *self._leaving}
        while left:
            for task in left:
                task.cancel()
            # What a worker answers at that moment would have it forgotten: `wait_for` returns the answer instead.
            _, left = await asyncio.wait(left, timeout=_POLL_S)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _observed_base(self) -> Observed:
        if self._replica is None:
            return PENDING if self._complaint is None else Observed("ERROR", self._complaint)
        if self._router.find(self._replica) is None:
            return PENDING
        return Observed("ONLINE", self._complaint)

    # --------------------------------------------------------------------------------------------- in the background

    async def _run(self) -> None:
        while self._wanted is not None or self._replica is not None or self._leaving:
            self._news.clear()
            try:
                await self._approach(self._wanted)
            except _OutdatedError:
                continue
            except HarmoniaError as error:
                log.error("model %s: %s", self._key, error)
            self._tell()
            await self._wait()
        self._changed()

    def _tell(self) -> None:
        observed = self.observed()
        if observed != self._told:
            self._told = observed
            self._changed()

    async def _approach(self, wanted: Wanted | None) -> None:
        if wanted is None:
            self._leave()
            return
        await self._notice_failure()
        if self._replica is None:
            if wanted.config != self._refused:
                await self._begin(wanted)
        elif wanted.config == self._config:
            self._refused, self._complaint = None, None
        elif wanted.config != self._refused:
            await self._replace(wanted)
        if self._replica is not None and self._router.find(self._replica) is not None:
            await self._match_adapters(self._replica, wanted.adapters)

    async def _begin(self, wanted: Wanted) -> None:
        """The first worker."""
        self._refused, self._complaint = None, None
        failure = await self._try(wanted)
        if failure is not None:
            self._refuse(wanted.config, failure.message)

    async def _replace(self, wanted: Wanted) -> None:
        """Another worker takes over; without room for both, after the first has ended."""
        assert self._replica is not None
        assert self._config is not None
        before, old = Wanted(self._config, wanted.adapters), self._replica
        failure = await self._try(wanted, wanted.adapters)
        if failure is None:
            self._leave_replica(old, DRAIN_S)
            return
        if failure.code != "insufficient_memory" or not self._fits_alone(failure, old):
            self._refuse(wanted.config, f"runs as before, since the new compute config fails: {failure.message}")
            return
        log.warning("model %s: two workers do not fit at once, so it is away while it changes", self._key)
        self._router.retire(old)
        self._replica = self._config = None
        await self._drain(old, DRAIN_S)
        failure = await self._try(wanted)
        if failure is not None:
            self._refuse(wanted.config, f"runs as before, since the new compute config fails: {failure.message}")
            await self._try(before)

    def _fits_alone(self, failure: WorkerFailure, replica: str) -> bool:
        """Whether what was short of memory could have had it if this worker had not."""
        worker = self._router.find(replica)
        held = worker.description.plan.get("total_bytes") if worker is not None else None
        needed, available = (failure.details.get(name) for name in ("total_bytes", "available_bytes"))
        if not (isinstance(held, int) and isinstance(needed, int) and isinstance(available, int)):
            return False
        return needed <= available + held

    async def _try(self, wanted: Wanted, first: Mapping[str, str] | None = None) -> WorkerFailure | None:
        """Start a worker and make it the one that serves; why not, if it refuses.

        first: adapters that it must have by then, since another worker serves them until it takes over.
        """
        replica = await self._fleet.start(wanted.config)
        self._tell()
        target = self._wanted
        try:
            while (failure := self._failure(replica)) is None and self._router.find(replica) is None:
                await self._wait()
                if self._wanted is None or target is None or self._wanted.config != target.config:
                    raise _OutdatedError
            if failure is None and first is not None:
                await self._match_adapters(replica, first)
        except BaseException:
            self._leave_replica(replica, 0.0)
            raise
        if failure is None:
            self._replica, self._config = replica, wanted.config
        else:
            await self._fleet.stop(replica)
        return failure

    async def _notice_failure(self) -> None:
        """A worker that served may end for good too, such as one whose files are gone."""
        if self._replica is None or self._config is None:
            return
        failure = self._failure(self._replica)
        if failure is not None:
            await self._fleet.stop(self._replica)
            self._refuse(self._config, failure.message)
            self._replica = self._config = None

    def _refuse(self, config: WorkerConfig, complaint: str) -> None:
        self._refused, self._complaint = config, complaint
        log.error("model %s: %s", self._key, complaint)

    def _failure(self, replica: str) -> WorkerFailure | None:
        for status in self._fleet.statuses():
            if status.replica == replica and status.state is WorkerState.FAILED:
                return status.failure or WorkerFailure(code="worker_lost", message="the worker ended without a word")
        return None

    async def _match_adapters(self, replica: str, wanted: Mapping[str, str]) -> None:
        worker = self._router.find(replica)
        assert worker is not None
        loaded = {model.key for model in worker.description.models if model.parent == self._key}
        for key in self._router.withdraw(loaded - wanted.keys(), replica):
            await self._unload(key, replica)
        for key in [key for key in wanted if key not in loaded and key not in self._refused_adapters]:
            try:
                await self._router.load_adapter(key, wanted[key], self._key, replica)
            except (InvalidRequestError, InsufficientMemoryError) as error:
                log.error("adapter %s: %s", key, error)
                self._refused_adapters[key] = error.message
            self._tell()

    async def _unload(self, adapter: str, replica: str) -> None:
        """Unless it is wanted again by now; who asks meanwhile must not be told that it is online."""
        if self._wanted is not None and adapter in self._wanted.adapters:
            return
        self._unloading.add(adapter)
        try:
            await self._router.unload_adapter(adapter, replica)
        finally:
            self._unloading.discard(adapter)

    def _leave(self) -> None:
        if self._replica is None:
            return
        worker = self._router.find(self._replica)
        self._router.retire(self._replica)
        moved = worker is not None and any(self._router.serves(model.key) for model in worker.description.models)
        self._leave_replica(self._replica, DRAIN_S if moved else STOP_DRAIN_S)
        self._replica = self._config = None

    def _leave_replica(self, replica: str, drain_s: float) -> None:
        """Send it nothing more, and end it in the background once it has answered."""
        self._router.retire(replica)
        task = asyncio.create_task(self._drain(replica, drain_s))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _drain(self, replica: str, drain_s: float) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + drain_s
        while (worker := self._router.find(replica)) is not None and worker.num_streams and loop.time() < end_s:
            await asyncio.sleep(_POLL_S)
        await self._fleet.stop(replica)

    async def _wait(self) -> None:
        """Until something happens; the timeout covers what happened before the wait began."""
        waits = [asyncio.create_task(self._news.wait()), asyncio.create_task(self._router.wait_change())]
        try:
            await asyncio.wait(waits, timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
