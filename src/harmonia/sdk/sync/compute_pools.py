# Made by scripts/generate of src/harmonia/sdk/aio/compute_pools.py: change that file, then run the script.
"""Compute pools."""

from __future__ import annotations

from collections.abc import Sequence

from harmonia.sdk.operations import compute_pools
from harmonia.sdk.operations.compute_pools import ComputePool
from harmonia.sdk.sync.resource import Resource


class ComputePools(Resource):
    """`adaptive.compute_pools`: isolated sets of GPUs."""

    def list(self) -> Sequence[ComputePool]:
        """All pools with their machines."""
        return self._transport.execute(compute_pools.COMPUTE_POOLS)

    def resize_inference_partition(self, compute_pool_key: str, size: int) -> str:
        """Change how many GPUs of each group of machines serve; the others run jobs."""
        body = {"computePool": compute_pool_key, "size": size}
        return self._transport.execute(compute_pools.RESIZE, input=body)
