"""Compute pools."""

from __future__ import annotations

from harmonia.sdk.operations.base import Result, mutation, query
from harmonia.sdk.operations.models import ServiceName


class GpuAllocation(Result, frozen=True):
    """GPUs that something holds."""

    name: str
    num_gpus: int
    ranks: list[int]
    created_at: int


class Group(Result, frozen=True):
    """Machines that work together: `status` ONLINE or OFFLINE, `world_size` their GPUs, of which `gpu_allocated` are
    held by models and jobs."""

    id: str
    key: str
    status: str
    url: str
    world_size: int
    gpu_total: int | None
    gpu_allocated: int | None
    gpu_types: str
    created_at: int
    online_models: list[ServiceName]
    gpu_allocations: list[GpuAllocation] | None


class ComputePool(Result, frozen=True):
    """An isolated set of GPUs; `capabilities` INFERENCE, JOB."""

    id: str
    key: str
    name: str
    created_at: int
    capabilities: list[str]
    harmony_groups: list[Group]


COMPUTE_POOLS = query("computePools", list[ComputePool])
RESIZE = mutation("resizeInferencePartition", str, input="ResizePartitionInput!")
