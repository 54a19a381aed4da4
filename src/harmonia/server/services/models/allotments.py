"""Who holds which device of this machine's pools: workers of models that are served, and jobs."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass

from harmonia.config import WorkerConfig
from harmonia.protocol.fleet import Fleet, WorkerStatus
from harmonia.server.db.base import now_ms
from harmonia.server.services.models.devices import INFERENCE, Device, Pool


@dataclass(frozen=True, slots=True)
class Holding:
    """Devices that somebody holds."""

    name: str
    """Key of a model, or `job/ID`."""
    ranks: tuple[int, ...]
    """Places of the devices in their pool, from 0."""
    since: int


@dataclass(frozen=True, slots=True)
class _Hold:
    name: str
    pool: str
    devices: tuple[Device, ...]
    since: int


class Allotments:
    """Devices are given out here and nowhere else, so what it says is so.

    Models share a device where there are fewer devices than models. A job shares none, but for the only device of a
    pool, on which models are served and one job runs.
    """

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.pools = {pool.key: pool for pool in pools}
        self._serving = {pool.key: len(pool.devices) if INFERENCE in pool.capabilities else 0 for pool in pools}
        self._placed: dict[tuple[str, str], _Hold] = {}
        """By model and pool: where its next worker starts."""
        self._workers: dict[str, _Hold] = {}
        self._jobs: dict[uuid.UUID, _Hold] = {}
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call it whenever a device may have become free."""
        self._listeners.append(listener)

    def holdings(self, pool: str) -> list[Holding]:
        """Who holds devices of a pool now, the first to come first."""
        found: dict[str, _Hold] = {}
        for hold in [*self._workers.values(), *self._placed.values(), *self._jobs.values()]:
            if hold.pool == pool:
                before = found.get(hold.name, hold)
                devices = tuple(dict.fromkeys((*before.devices, *hold.devices)))
                found[hold.name] = _Hold(hold.name, pool, devices, min(before.since, hold.since))
        order = self.pools[pool].devices if pool in self.pools else ()
        return [
            Holding(hold.name, tuple(sorted(order.index(device) for device in hold.devices)), hold.since)
            for hold in sorted(found.values(), key=lambda hold: (hold.since, hold.name))
        ]

    def models_in(self, pool: str) -> set[str]:
        """Keys of the base models that have a worker in a pool."""
        return {hold.name for hold in self._workers.values() if hold.pool == pool}

    def pool_of(self, replica: str) -> str:
        """The pool in which a worker of a model runs; empty once it has ended."""
        hold = self._workers.get(replica)
        return "" if hold is None else hold.pool

    # ----------------------------------------------------------------------------------------------------- models

    def set_serving(self, pool: str, size: int) -> None:
        """How many devices of a pool, from its first, models may have."""
        self._serving[pool] = size

    def pools_for(self, model: str, named: Collection[str]) -> list[str]:
        """The pools that a model goes to: all that were named, else the one where it is, else that with most room."""
        able = [key for key, pool in self.pools.items() if INFERENCE in pool.capabilities and self._serving[key]]
        if named:
            return [key for key in able if key in named]
        home = [key for key in able if (model, key) in self._placed]
        return home[:1] or sorted(able, key=self._load)[:1]

    def place(self, model: str, pool: str) -> Device | None:
        """The device for a model in a pool, the same as before if it may stay; None while jobs hold them all."""
        devices = self.pools[pool].devices[: self._serving[pool]]
        before = self._placed.pop((model, pool), None)
        if before is not None and before.devices[0] in devices:
            self._placed[model, pool] = before
            return before.devices[0]
        jobs = () if self.pools[pool].is_shared else _devices(self._jobs.values())
        free = [device for device in devices if device not in jobs]
        if not free:
            return None
        chosen = min(free, key=lambda device: len(self._models_on(device)))
        self._placed[model, pool] = _Hold(model, pool, (chosen,), now_ms())
        return chosen

    def keep(self, placed: Collection[tuple[str, str]]) -> None:
        """Forget the places of all other models; their workers hold theirs until they end."""
        gone = self._placed.keys() - set(placed)
        for key in gone:
            del self._placed[key]
        if gone:
            self._tell()

    def began(self, replica: str, config: WorkerConfig) -> None:
        """A worker of a model starts."""
        for pool in self.pools.values():
            devices = tuple(device for device in pool.devices if device.place == config.place)
            if devices:
                self._workers[replica] = _Hold(config.key, pool.key, devices, now_ms())

    def ended(self, replica: str) -> None:
        """A worker of a model has ended."""
        if self._workers.pop(replica, None) is not None:
            self._tell()

    # ------------------------------------------------------------------------------------------------------- jobs

    def take(self, job_id: uuid.UUID, pool: str, count: int) -> tuple[Device, ...] | None:
        """Devices for a job, those first that are not for models; None while too few are free."""
        found = self.pools[pool]
        held = _devices(self._jobs.values())
        if not found.is_shared:
            held |= _devices(self._workers.values()) | _devices(self._placed.values())
        free = [device for device in reversed(found.devices) if device not in held]
        if len(free) < count:
            return None
        taken = tuple(free[:count])
        if taken:
            self._jobs[job_id] = _Hold(f"job/{job_id}", pool, taken, now_ms())
        return taken

    def release(self, job_id: uuid.UUID) -> None:
        """A job has ended."""
        if self._jobs.pop(job_id, None) is not None:
            self._tell()

    # ------------------------------------------------------------------------------------------------------ inside

    def _load(self, pool: str) -> float:
        """How many models there are for each device that serves."""
        models = {hold.name for hold in [*self._workers.values(), *self._placed.values()] if hold.pool == pool}
        return len(models) / self._serving[pool]

    def _models_on(self, device: Device) -> set[str]:
        holds = [*self._workers.values(), *self._placed.values()]
        return {hold.name for hold in holds if device in hold.devices}

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


class CountedFleet(Fleet):
    """A fleet whose workers hold devices from the moment in which they start to that in which they have ended."""

    def __init__(self, fleet: Fleet, allotments: Allotments) -> None:
        self._fleet = fleet
        self._allotments = allotments

    async def start(self, config: WorkerConfig) -> str:
        """Begin to start a worker on the device that its configuration names."""
        replica = await self._fleet.start(config)
        self._allotments.began(replica, config)
        return replica

    async def stop(self, replica: str) -> None:
        """End a worker and let go of its device."""
        await self._fleet.stop(replica)
        self._allotments.ended(replica)

    async def close(self) -> None:
        """End every worker."""
        await self._fleet.close()

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """The present state of every worker."""
        return self._fleet.statuses()

    def watch(self) -> AsyncIterator[WorkerStatus]:
        """The present state of every worker, then each change."""
        return self._fleet.watch()


def _devices(holds: Collection[_Hold]) -> set[Device]:
    return {device for hold in holds for device in hold.devices}
