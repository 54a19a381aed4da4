"""Compute pools."""

from __future__ import annotations

from collections.abc import Sequence

from harmonia.sdk.aio.resource import AsyncResource
from harmonia.sdk.operations import compute_pools
from harmonia.sdk.operations.compute_pools import ComputePool


class AsyncComputePools(AsyncResource):
    """`adaptive.compute_pools`: isolated sets of GPUs."""

    async def list(self) -> Sequence[ComputePool]:
        """All pools with their machines."""
        return await self._transport.execute(compute_pools.COMPUTE_POOLS)

    async def resize_inference_partition(self, compute_pool_key: str, size: int) -> str:
        """Change how many GPUs of each group of machines serve; the others run jobs."""
        body = {"computePool": compute_pool_key, "size": size}
        return await self._transport.execute(compute_pools.RESIZE, input=body)
