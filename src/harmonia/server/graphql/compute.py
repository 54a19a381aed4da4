"""Compute pools."""

from __future__ import annotations

import uuid
from enum import Enum

import strawberry

from harmonia.server.graphql.context import Info
from harmonia.server.graphql.lazy import JOB, object_of
from harmonia.server.graphql.models import Model
from harmonia.server.graphql.scalars import IdOrKey, Timestamp
from harmonia.server.services.models.compute import PoolState


@strawberry.enum
class ComputePoolCapability(Enum):
    """What a pool takes."""

    INFERENCE = "INFERENCE"
    JOB = "JOB"


@strawberry.enum
class HarmonyStatus(Enum):
    """Whether devices answer."""

    ONLINE = "ONLINE"
    OFFLINE = "OFFLINE"


async def _job(root: strawberry.Parent[GpuAllocation], info: Info) -> object | None:
    """The job that holds them, if one does that the caller may see; models hold the others."""
    kind, _, job_id = root.name.partition("/")
    if kind != "job":
        return None
    found = await info.context.services.jobs.find(info.context.caller, uuid.UUID(job_id))
    return None if found is None else object_of(info, "Job", found)


@strawberry.type
class GpuAllocation:
    """Devices that somebody holds."""

    name: str
    num_gpus: int
    ranks: list[int]
    created_at: Timestamp
    job: object | None = strawberry.field(resolver=_job, graphql_type=JOB)


@strawberry.type
class HarmonyGroup:
    """The devices of one machine of a pool."""

    id: uuid.UUID
    key: str
    pool: strawberry.Private[PoolState]
    status: HarmonyStatus
    url: str
    world_size: int
    inference_partition_size: int
    gpu_total: int
    gpu_allocated: int
    gpu_allocations: list[GpuAllocation]
    gpu_types: str
    created_at: Timestamp
    online_models: list[Model]

    @classmethod
    def of(cls, state: PoolState) -> HarmonyGroup:
        """The one machine of a pool."""
        pool, size = state.pool, state.pool.num_inference
        created_at = Timestamp(pool.created_at)
        held = [
            GpuAllocation(
                name=item.name, num_gpus=len(item.ranks), ranks=list(item.ranks), created_at=Timestamp(item.since)
            )
            for item in state.holdings
        ]
        return cls(
            id=pool.id,
            key=pool.key,
            pool=state,
            status=HarmonyStatus.ONLINE,
            url="local",
            world_size=pool.num_devices,
            inference_partition_size=size,
            gpu_total=pool.num_devices,
            gpu_allocated=state.num_held,
            gpu_allocations=held,
            gpu_types=pool.device_types,
            created_at=created_at,
            online_models=[Model.of(row) for row in state.online],
        )

    @strawberry.field
    def compute_pool(self) -> ComputePool | None:
        """Where it belongs."""
        return ComputePool.of(self.pool)


@strawberry.type
class ComputePool:
    """Devices that belong together."""

    id: uuid.UUID
    key: str
    name: str
    created_at: Timestamp
    capabilities: list[ComputePoolCapability]
    state: strawberry.Private[PoolState]

    @classmethod
    def of(cls, state: PoolState) -> ComputePool:
        """From its row."""
        pool = state.pool
        return cls(
            id=pool.id,
            key=pool.key,
            name=pool.name,
            created_at=Timestamp(pool.created_at),
            capabilities=[ComputePoolCapability(name) for name in pool.capabilities],
            state=state,
        )

    @strawberry.field
    def harmony_groups(self) -> list[HarmonyGroup]:
        """Its machines that answer."""
        return [HarmonyGroup.of(self.state)]

    @strawberry.field
    def all_harmony_groups(self) -> list[HarmonyGroup]:
        """All its machines."""
        return [HarmonyGroup.of(self.state)]


@strawberry.input
class ResizePartitionInput:
    """How many devices of a pool shall serve."""

    compute_pool: IdOrKey
    size: int


@strawberry.type
class ComputeQuery:
    """What there is to compute on."""

    @strawberry.field
    async def compute_pools(self, info: Info) -> list[ComputePool]:
        """Every pool."""
        return [ComputePool.of(state) for state in await info.context.services.compute.pools(info.context.caller)]

    @strawberry.field
    async def harmony_groups(self, info: Info) -> list[HarmonyGroup]:
        """Every machine that answers."""
        return [HarmonyGroup.of(state) for state in await info.context.services.compute.pools(info.context.caller)]

    @strawberry.field
    async def all_harmony_groups(self, info: Info) -> list[HarmonyGroup]:
        """Every machine."""
        return [HarmonyGroup.of(state) for state in await info.context.services.compute.pools(info.context.caller)]


@strawberry.type
class ComputeMutation:
    """Sharing devices out."""

    @strawberry.mutation
    async def resize_inference_partition(self, info: Info, input: ResizePartitionInput) -> str:
        """Set how many devices of a pool serve."""
        compute = info.context.services.compute
        return await compute.resize(info.context.caller, input.compute_pool, input.size)
