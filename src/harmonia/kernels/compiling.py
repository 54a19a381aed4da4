"""Compiling the Triton kernels of a piece of work at once, instead of one by one where each is first launched."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from harmonia.kernels import gpu
from harmonia.log import get_logger

_MAX_THREADS = 16
"""Parsing a kernel holds the interpreter lock, and optimizing it, which takes longer, does not."""

log = get_logger(__name__)


class _Kernel(NamedTuple):
    function: Any
    specialization: str
    """What Triton's `preload` takes."""


def compile_together(run: Callable[[], object], device: torch.device) -> None:
    """Compile what `run` would launch, on all cores; nothing to do without a GPU.

    `run` is called once, and launches no Triton kernel: everything else in it computes with whatever memory holds. It
    may neither keep results nor take them for indices.
    """
    if device.type != "cuda" or not gpu.has_triton():
        return
    began = time.perf_counter()
    kernels = _collect(run)
    collected = time.perf_counter()
    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(
        num_threads, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),)
    ) as pool:
        list(pool.map(_compile, kernels))
    seconds = collected - began, time.perf_counter() - collected
    log.debug("%d kernels found in %.2f s, compiled in %.2f s", len(kernels), *seconds)


def _collect(run: Callable[[], object]) -> list[_Kernel]:
    """What `run` would have compiled in this thread; other threads launch as ever."""
    from triton import JITFunction, knobs  # imported where it runs: a CPU install has no Triton

    found: dict[tuple[int, str], _Kernel] = {}
    caller, launch, hook = threading.get_ident(), JITFunction.run, knobs.runtime.jit_cache_hook

    def run_nothing(self: Any, *args: Any, warmup: bool, **options: Any) -> Any:
        return launch(self, *args, warmup=warmup or threading.get_ident() == caller, **options)

    def note(*, key: str, fn: Any, compile: dict[str, Any], **_: object) -> bool:
        """Triton asks before it compiles; True is no."""
        if threading.get_ident() != caller:
            return False
        found.setdefault((id(fn.jit_function), key), _Kernel(fn.jit_function, compile["specialization_data"]))
        return True

    JITFunction.run, knobs.runtime.jit_cache_hook = run_nothing, note
    try:
        run()
    finally:
        JITFunction.run, knobs.runtime.jit_cache_hook = launch, hook
    return list(found.values())


def _compile(kernel: _Kernel) -> None:
    try:
        kernel.function.preload(kernel.specialization)
    except Exception:
        log.debug("%s was not compiled beforehand", kernel.function, exc_info=True)
