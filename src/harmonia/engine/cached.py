"""A decoder with its key/value cache.

Shapes: N blocks, P tokens per block, G key/value heads, D head size.
"""

from __future__ import annotations

import numpy as np
import torch

from harmonia.engine.plan import Plan
from harmonia.kernels.pages import LayerCache
from harmonia.models import ModelConfig
from harmonia.models.decoder import Decoder


class CachedDecoder:
    """Weights, and room for keys and values in each block of a pool."""

    def __init__(self, decoder: Decoder, plan: Plan) -> None:
        self.decoder = decoder
        self.plan = plan
        self.device = plan.fmt.device
        self.caches = _allocate_cache(decoder.config, plan)

    @property
    def places(self) -> tuple[int, int]:
        """Addresses of what captured graphs read and what may move, adapters left out; they differ once it did."""
        return self.caches[0].k_NPGD.data_ptr(), self.decoder.embedding.weight.weight_NK.data_ptr()

    @property
    def adapters_generation(self) -> int:
        """Counts what moved adapters in memory; there are none here."""
        return 0

    def grow_cache(self, num_blocks: int) -> None:
        """Enlarge the cache; what is in it stays. One layer at a time, so little is held twice."""
        shape = (num_blocks, *self.caches[0].k_NPGD.shape[1:])
        for cache in self.caches:
            cache.k_NPGD, cache.v_NPGD = (_enlarged(old, shape, self.plan) for old in (cache.k_NPGD, cache.v_NPGD))


def _allocate_cache(model: ModelConfig, plan: Plan) -> tuple[LayerCache, ...]:
    shape = plan.num_blocks, plan.config.cache.block_size, model.num_kv_heads, model.head_dim
    return tuple(LayerCache(_zeros(shape, plan), _zeros(shape, plan)) for _ in range(model.num_layers))


def _enlarged(old_NPGD: torch.Tensor, shape: tuple[int, ...], plan: Plan) -> torch.Tensor:
    new_NPGD = _zeros(shape, plan)
    new_NPGD[: old_NPGD.shape[0]].copy_(old_NPGD)
    return new_NPGD


def _zeros(shape: tuple[int, ...], plan: Plan) -> torch.Tensor:
    fmt = plan.fmt
    if fmt.device.type == "cpu" and fmt.dtype is torch.float32:
        # numpy's zeros are not touched until used, so an idle cache costs no memory
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(shape, dtype=fmt.dtype, device=fmt.device)
