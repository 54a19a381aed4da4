"""CPU kernels compiled by numba, run by torch's own OpenMP threads.

numba's own threads would spin against torch's on the same cores, so a kernel is single-threaded code that is told which
share of the work is its own, and `Kernel.run` starts it on the team that torch's operators use. Compiled code is kept
on disk: beside the source, or in the user's cache directory where that is read-only.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numba
import torch
from numba import types
from torch import Tensor

from harmonia.kernels.native_code import FAST_MATH, call_kernel, int64s

Impl = Literal["auto", "eager", "native", "triton"]
"""`native` is the compiled CPU kernel, `triton` the compiled GPU kernel; `auto` takes them where they apply."""

Body = Callable[[int, int, int], None]
_PLAIN_CALL = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64)


class Kernel:
    """A compiled function of (address of arguments, own thread, number of threads).

    Arguments are 64 bits each, as `layout` says: `q` for an integer or the address of a tensor, `d` for a number.
    It is compiled, or loaded from disk, when first used.
    """

    def __init__(self, layout: str, body: Body) -> None:
        self.body = body
        self._arguments = struct.Struct("=" + layout)
        self._packet = struct.Struct("=q" + layout)

    @cached_property
    def _compiled(self) -> Any:
        return _compile(self.body, "void(int64, int64, int64)")

    @cached_property
    def _alone(self) -> Callable[[bytes, int, int], None]:
        return _PLAIN_CALL(self._compiled.address)

    def load(self) -> None:
        """Compile now."""
        self._alone  # noqa: B018  a cached property

    def run(self, num_threads: int, *arguments: float) -> None:
        """Do all the work on that many threads, the calling one included."""
        team = _team() if num_threads > 1 else None
        if team is None:
            self._alone(self._arguments.pack(*arguments), 0, 1)
        else:
            parallel, member = team
            parallel(member.address, self._packet.pack(self._compiled.address, *arguments), num_threads, 0)


_KERNELS: list[Kernel] = []


def kernel(layout: str) -> Callable[[Body], Kernel]:
    """Declare a kernel whose arguments have this layout."""

    def declare(body: Body) -> Kernel:
        declared = Kernel(layout, body)
        _KERNELS.append(declared)
        return declared

    return declare


def load_kernels() -> None:
    """Compile every kernel now, or load it from disk, so that no request waits for it."""
    for declared in _KERNELS:
        declared.load()
    _team()


def usable(*tensors: Tensor) -> bool:
    """Whether compiled kernels apply: fp32 on the CPU, and nothing that autograd must see."""
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
        if tensor.requires_grad and torch.is_grad_enabled():
            return False
    return True


def threads_for(work: int, work_per_thread: int) -> int:
    """Threads for so much work, when waking one more pays off only for `work_per_thread`."""
    return max(1, min(torch.get_num_threads(), work // work_per_thread))


def _compile(body: Callable[..., None], signature: str) -> Any:
    options: dict[str, Any] = {"fastmath": FAST_MATH, "error_model": "numpy"}
    try:
        return numba.cfunc(signature, cache=True, **options)(body)
    except RuntimeError as error:
        if "cannot cache" not in str(error):  # no directory that could be written
            raise
        return numba.cfunc(signature, **options)(body)


@cache
def _team() -> tuple[Callable[[int, bytes, int, int], None], Any] | None:
    """(GOMP_parallel of torch's OpenMP, what each of its threads runs); None where torch uses another library."""
    found = sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))
    if not found or not hasattr(library := ctypes.CDLL(str(found[0])), "GOMP_parallel"):
        return None
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        llvm.add_symbol(f"harmonia_{name}", ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    parallel = library.GOMP_parallel
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel, _compile(_member, "void(int64)")


_thread_num: Any = types.ExternalFunction("harmonia_omp_get_thread_num", types.int32())
_num_threads: Any = types.ExternalFunction("harmonia_omp_get_num_threads", types.int32())


def _member(packet: int) -> None:
    """Run the kernel whose address comes first in the packet, its arguments behind it."""
    call_kernel(int64s(packet, 1)[0], packet + 8, _thread_num(), _num_threads())
