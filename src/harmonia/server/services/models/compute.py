"""Compute pools and what runs in them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import select

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.log import get_logger
from harmonia.server.db.database import Database
from harmonia.server.db.models import ComputePool, Model
from harmonia.server.services.access import Caller, by_id_or_key, require_anywhere
from harmonia.server.services.audit import record
from harmonia.server.services.models.allotments import Allotments, Holding
from harmonia.server.services.models.devices import INFERENCE, Pool
from harmonia.server.services.models.models import EXTERNAL
from harmonia.server.services.models.serving import Serving

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool at one moment."""

    pool: ComputePool
    online: list[Model]
    """Models that answer there."""
    holdings: list[Holding]
    """Who holds its devices."""

    @property
    def num_held(self) -> int:
        """Devices that are not free."""
        return len({rank for holding in self.holdings for rank in holding.ranks})


class Compute:
    """What there is to compute on."""

    def __init__(self, database: Database, serving: Serving, allotments: Allotments) -> None:
        self._database = database
        self._serving = serving
        self._allotments = allotments

    async def start(self) -> None:
        """Note the pools that this machine has now; those of earlier settings are gone."""
        async with self._database.begin() as session:
            rows = {row.key: row for row in (await session.execute(select(ComputePool))).scalars()}
            for key, pool in self._allotments.pools.items():
                row = rows.pop(key, None) or ComputePool(key=key)
                _note(row, pool)
                session.add(row)
            for key, row in rows.items():
                log.warning("compute pool %s is no longer configured", key)
                await session.delete(row)

    async def pools(self, caller: Caller) -> list[PoolState]:
        """Every pool."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, "compute:read")
            pools = (await session.execute(select(ComputePool).order_by(ComputePool.key))).scalars().all()
            query = select(Model).where(Model.online == "ONLINE", Model.kind != EXTERNAL).order_by(Model.key)
            online = list((await session.execute(query)).scalars())
        return [self._state(pool, online) for pool in pools]

    async def pool_id(self, key: str) -> uuid.UUID | None:
        """Of a pool by its key, for who sees a job that runs there; None if it is there no longer."""
        async with self._database.read() as session:
            return (await session.execute(select(ComputePool.id).where(ComputePool.key == key))).scalar_one_or_none()

    def _state(self, pool: ComputePool, online: list[Model]) -> PoolState:
        here = self._allotments.models_in(pool.key)
        there = [model for model in online if self._serving.root_of(model.key) in here]
        return PoolState(pool, there, self._allotments.holdings(pool.key))

    async def resize(self, caller: Caller, pool: str, size: int) -> str:
        """Set how many devices of a pool may serve; on the others nothing but jobs run. With 0 nothing is served."""
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "compute:manage")
            query = select(ComputePool).where(by_id_or_key(ComputePool.id, ComputePool.key, pool))
            row = (await session.execute(query)).scalar_one_or_none()
            if row is None:
                raise EntityNotFoundError(f"Compute pool {pool!r} does not exist", entity="compute pool")
            if INFERENCE not in row.capabilities:
                raise InvalidRequestError(
                    f"compute pool {row.key!r} takes jobs only; name another", field="computePool"
                )
            if not 0 <= size <= row.num_devices:
                raise InvalidRequestError(
                    f"size: {row.key!r} has {row.num_devices} devices, so it must be from 0 to that, got {size}",
                    field="size",
                )
            row.num_inference = size
            record(session, caller, "compute.resize", f"compute_pool/{row.key}", size=size)
        self._serving.wake()
        return f"{row.key}: {size} of {row.num_devices} devices serve"


def _note(row: ComputePool, pool: Pool) -> None:
    """Write what a pool has now; how many of its devices serve stays as it was chosen."""
    was_whole = row.num_inference is None or row.num_inference == row.num_devices
    count = len(pool.devices)
    row.name, row.capabilities = pool.name, list(pool.capabilities)
    row.num_devices, row.device_types = count, pool.device_types
    if INFERENCE not in pool.capabilities:
        row.num_inference = 0
    else:
        row.num_inference = count if was_whole else min(row.num_inference, count)
