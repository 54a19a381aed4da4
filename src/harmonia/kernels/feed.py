"""Sampled ids that stay on the device: remembered by running slot, and fed to the next step.

Shapes: T tokens, R rows that sampled, S running slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harmonia.kernels import gpu
from harmonia.kernels.native import Impl


def fed_ids(token_ids_T: Tensor, fed_slots_T: Tensor, last_ids_S: Tensor, impl: Impl = "auto") -> Tensor:
    """The last id of a slot where one is named, else the known token (slot -1): ids_T in int64."""
    if impl == "triton" or (impl == "auto" and _usable(last_ids_S)):
        from harmonia.kernels.feed_triton import take_fed  # imported where it runs: a CPU install has no Triton

        return take_fed(token_ids_T, fed_slots_T, last_ids_S)
    return torch.where(fed_slots_T < 0, token_ids_T.long(), last_ids_S[fed_slots_T.clamp(min=0)])


def remember(last_ids_S: Tensor, slots_R: Tensor, ids_R: Tensor, impl: Impl = "auto") -> None:
    """Write each row's sampled id to its slot; for slot -1, which only padding has, nobody may read the last one."""
    if impl == "triton" or (impl == "auto" and _usable(last_ids_S)):
        from harmonia.kernels.feed_triton import put_ids

        put_ids(last_ids_S, slots_R, ids_R)
        return
    last_ids_S[slots_R] = ids_R


def _usable(last_ids_S: Tensor) -> bool:
    return last_ids_S.is_cuda and gpu.has_triton()
