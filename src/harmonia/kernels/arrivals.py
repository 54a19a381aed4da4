"""Counters by which the last of several programs on a GPU knows that the others are done."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

MAX_TILES = 1 << 16
_GRAPHS = -1


def arrival_counts(device: torch.device) -> Tensor:
    """How many programs of each tile are done: zeros before and after every kernel that uses them.

    Each stream has its own, since kernels of two streams overlap; captured graphs, which are replayed one after
    another, share one. That is made with the first of the others: inside a capture it would not be filled.
    """
    if device.type != "cuda":
        return _zeros(device, _GRAPHS)
    shared = _zeros(device, _GRAPHS)
    if torch.cuda.is_current_stream_capturing():
        return shared
    return _zeros(device, torch.cuda.current_stream(device).cuda_stream)


@cache
def _zeros(device: torch.device, stream: int) -> Tensor:
    assert device.type != "cuda" or not torch.cuda.is_current_stream_capturing(), "run it once before it is captured"
    with torch.inference_mode(mode=False):
        return torch.zeros(MAX_TILES, dtype=torch.int32, device=device)
