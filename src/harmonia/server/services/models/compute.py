"""Compute pools and what runs in them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.models import ComputePool, Model
from harmonia.server.services.access import Caller, by_id_or_key, require_anywhere
from harmonia.server.services.audit import record
from harmonia.server.services.models.models import EXTERNAL
from harmonia.server.services.models.serving import Serving


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool and the models that are online there."""

    pool: ComputePool
    online: list[Model]


class Compute:
    """What there is to compute on."""

    def __init__(self, database: Database, serving: Serving) -> None:
        self._database = database
        self._serving = serving

    async def pools(self, caller: Caller) -> list[PoolState]:
        """Every pool."""
        async with self._database.read() as session:
            await require_anywhere(session, caller, "compute:read")
            pools = (await session.execute(select(ComputePool).order_by(ComputePool.key))).scalars().all()
            query = select(Model).where(Model.online == "ONLINE", Model.kind != EXTERNAL).order_by(Model.key)
            online = list((await session.execute(query)).scalars())
        # One fleet serves today, that of this machine, so its pool has them all.
        return [PoolState(pool, online if "INFERENCE" in pool.capabilities else []) for pool in pools]

    async def resize(self, caller: Caller, pool: str, size: int) -> str:
        """Set how many devices of a pool serve; the rest is for jobs. With 0 nothing is served there."""
        async with self._database.begin() as session:
            await require_anywhere(session, caller, "compute:manage")
            query = select(ComputePool).where(by_id_or_key(ComputePool.id, ComputePool.key, pool))
            row = (await session.execute(query)).scalar_one_or_none()
            if row is None:
                raise EntityNotFoundError(f"Compute pool {pool!r} does not exist", entity="compute pool")
            if not 0 <= size <= row.num_devices:
                raise InvalidRequestError(
                    f"size: {row.key!r} has {row.num_devices} devices, so it must be from 0 to that, got {size}",
                    field="size",
                )
            row.num_inference = size
            record(session, caller, "compute.resize", f"compute_pool/{row.key}", size=size)
        self._serving.wake()
        return f"{row.key}: {size} of {row.num_devices} devices serve"
