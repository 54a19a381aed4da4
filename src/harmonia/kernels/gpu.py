"""When the kernels written in Triton apply."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_TYPES = (torch.bfloat16, torch.float16, torch.float32)


def usable(*tensors: Tensor) -> bool:
    """Whether Triton kernels apply: floating point on a GPU, and Triton is there, as it is beside torch for CUDA."""
    return all(tensor.is_cuda and tensor.dtype in _TYPES for tensor in tensors) and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


@cache
def is_hopper(device: torch.device) -> bool:
    """Whether it is the kind of GPU that choices of kernels were measured on."""
    return torch.cuda.get_device_capability(device) == (9, 0)


@cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; that of an H100 where there is none, so that choices can be tested."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
