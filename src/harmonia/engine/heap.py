"""Allocators keep what tensors gave back; here they are made to return it before the plan is exceeded.

Between tensors that are kept for backward, freed ones leave holes that nothing fits into: SmolLM2-135M with all layers
kept at 1024 tokens takes 2.0 GiB with them and 1.8 without. Giving them back takes 2 ms and some page faults (mapping
each tensor apart takes a quarter of the speed), so it is done after long work and where the plan would be exceeded.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")
_FULL = 0.97
"""Share of the plan from which on holes are given back: one slice may still grow before the next look."""
_LONG_S = 0.1
_LOOK_S = 0.02


class DeviceHeap:
    """The same for torch's allocator on a GPU."""

    def __init__(self) -> None:
        self._looked_s = 0.0

    def keep_within(self, promised: Callable[[], int], _worked_s: float) -> None:
        """Give holes back if more than was promised to tensors is reserved. Looking takes 0.1 ms, so not each time."""
        now = time.perf_counter()
        if now - self._looked_s > _LOOK_S:
            self._looked_s = now
            if torch.cuda.memory_reserved() > promised():
                torch.cuda.empty_cache()


class Heap:
    """Anonymous memory of this process beyond what it had at the beginning: on a CPU, where its tensors are."""

    def __init__(self) -> None:
        self._first = _anonymous_bytes()

    def keep_within(self, promised: Callable[[], int], worked_s: float) -> None:
        """Give holes back if the process takes more than that, or has just worked for so long that it costs little."""
        if worked_s > _LONG_S or _anonymous_bytes() - self._first > _FULL * promised():
            trim = _malloc_trim()
            if trim is not None:
                trim(0)


def _anonymous_bytes() -> int:
    try:
        fields = _STATM.read_text().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


@cache
def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
