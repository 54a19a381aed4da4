"""CPU kernels compiled by numba, run by torch's own OpenMP threads.

numba's own threads would spin against torch's on the same cores, so a kernel is single-threaded code that is told which share of
the work is its own, and `Kernel.run` starts it on the team that torch's operators use. Compiled code is kept on disk: beside the
source, or in the user's cache directory where that is read-only.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import llvmlite.binding as llvm
import numba
import torch
from llvmlite import ir
from numba import carray, float32, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

Impl = Literal["auto", "eager", "native"]
"""`native` is the compiled CPU kernel, `auto` takes it where it applies."""

# Sums may be taken in another order, but infinities and NaN keep their meaning: masks need the former, callers the latter.
FAST_MATH = {"nsz", "arcp", "contract", "reassoc"}
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

    def run_share(self, thread: int, num_threads: int, *arguments: float) -> None:
        """Do the work of one thread of a team, on the calling one."""
        self._alone(self._arguments.pack(*arguments), thread, num_threads)


_KERNELS: list[Kernel] = []


def kernel(layout: str) -> Callable[[Body], Kernel]:
    """Declare a kernel whose arguments have this layout."""

    def declare(body: Body) -> Kernel:
        declared = Kernel(layout, body)
        _KERNELS.append(declared)
        return declared

    return declare


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """A piece that kernels are made of."""
    compiled: Callable[..., Any] = numba.njit(fastmath=FAST_MATH, error_model="numpy")(function)
    return compiled


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
    options = {"fastmath": FAST_MATH, "error_model": "numpy"}
    try:
        return numba.cfunc(signature, cache=True, **options)(body)
    except RuntimeError as error:
        if "cannot cache" not in str(error):  # no directory that could be written
            raise
        return numba.cfunc(signature, **options)(body)


@cache
def _team() -> tuple[Callable[[int, bytes, int, int], None], Any] | None:
    """(GOMP_parallel of torch's OpenMP library, what each of its threads runs); None where torch has another library."""
    found = sorted(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"))
    if not found or not hasattr(library := ctypes.CDLL(str(found[0])), "GOMP_parallel"):
        return None
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        llvm.add_symbol(f"harmonia_{name}", ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    parallel = library.GOMP_parallel
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel, _compile(_member, "void(int64)")


# ---------------------------------------------------------------- what kernels are written with

_thread_num = types.ExternalFunction("harmonia_omp_get_thread_num", types.int32())
_num_threads = types.ExternalFunction("harmonia_omp_get_num_threads", types.int32())


def _member(packet: int) -> None:
    """Run the kernel whose address comes first in the packet, its arguments behind it."""
    _call(int64s(packet, 1)[0], packet + 8, _thread_num(), _num_threads())


@intrinsic  # type: ignore[untyped-decorator]
def _call(context: Any, address: Any, arguments: Any, thread: Any, num_threads: Any) -> Any:
    word = types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        machine_word = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [machine_word] * 3).as_pointer()
        builder.call(builder.inttoptr(values[0], function), values[1:])
        return context.get_dummy_value()

    return types.void(word, word, word, word), generate


def _pointer_cast(element: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def cast(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), generate

    return cast


_as_float32s, _as_float64s = _pointer_cast(types.float32), _pointer_cast(types.float64)
_as_int8s, _as_int32s, _as_int64s = _pointer_cast(types.int8), _pointer_cast(types.int32), _pointer_cast(types.int64)


@part
def float32s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return carray(_as_float32s(address), (size,))


@part
def float64s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return carray(_as_float64s(address), (size,))


@part
def int8s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return carray(_as_int8s(address), (size,))


@part
def int32s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return carray(_as_int32s(address), (size,))


@part
def int64s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return carray(_as_int64s(address), (size,))


@part
def share(work: int, thread: int, num_threads: int) -> tuple[int, int]:
    """First and last+1 of this thread's part of the work."""
    return work * thread // num_threads, work * (thread + 1) // num_threads


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch_line(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], function_type)
        builder.call(function, [builder.inttoptr(values[0], pointer), word(0), word(3), word(1)])  # data, for reading
        return context.get_dummy_value()

    return types.void(types.int64), generate


@part
def prefetch(address: int, size: int) -> None:
    """Ask for memory that is read soon; nothing happens where it does not exist."""
    for line in range(0, size, 64):
        _prefetch_line(address + line)


def _add_product(num_rows: int, num_vectors: int) -> Any:
    """C += A B for so many rows of A and 16 columns of B a vector; the sums stay in registers, which loops in numba would not do.

    Arguments: (a, a_stride, b, b_stride, c, c_stride, steps) as addresses and bytes from row to row.
    """
    word, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), 16)
    pairs = [(row, column) for row in range(num_rows) for column in range(num_vectors)]

    def load(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
        loaded = builder.load(builder.inttoptr(builder.add(address, offset), kind.as_pointer()))
        loaded.align = 4
        return loaded

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        a, a_stride, b, b_stride, c, c_stride, steps = values
        fma_type = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, fma_type, "llvm.fma.v16f32")
        places = {(row, column): builder.add(builder.mul(c_stride, word(row)), word(64 * column)) for row, column in pairs}
        sums = {pair: cgutils.alloca_once_value(builder, load(builder, c, places[pair], vector)) for pair in pairs}
        with cgutils.for_range(builder, steps) as loop:
            b_row = builder.add(b, builder.mul(b_stride, loop.index))
            a_column = builder.add(a, builder.mul(word(4), loop.index))
            b_vectors = [load(builder, b_row, word(64 * column), vector) for column in range(num_vectors)]
            for row in range(num_rows):
                scalar = load(builder, a_column, builder.mul(a_stride, word(row)), ir.FloatType())
                lane = builder.insert_element(vector(ir.Undefined), scalar, ir.IntType(32)(0))
                factor = builder.shuffle_vector(lane, vector(ir.Undefined), ir.VectorType(ir.IntType(32), 16)(None))
                for column in range(num_vectors):
                    total = builder.load(sums[row, column])
                    builder.store(builder.call(fma, [factor, b_vectors[column], total]), sums[row, column])
        for pair in pairs:
            target = builder.inttoptr(builder.add(c, places[pair]), vector.as_pointer())
            builder.store(builder.load(sums[pair]), target).align = 4
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def add_product(
        context: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, c: Any, c_stride: Any, steps: Any
    ) -> Any:
        return types.void(*[types.int64] * 7), generate

    return add_product


add_product_4_rows_64_columns = _add_product(4, 4)
add_product_4_rows_16_columns = _add_product(4, 1)


@intrinsic  # type: ignore[untyped-decorator]
def _nearest(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()]), values)

    return types.float32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def float_of_bits(context: Any, bits: Any) -> Any:
    """The fp32 number whose bits an int32 holds."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def bits_of_float(context: Any, number: Any) -> Any:
    """The bits of an fp32 number as an int32; positive ones order as the numbers do."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _power_of_two(context: Any, whole: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(32)
        exponent = builder.add(builder.fptosi(values[0], word), word(127))
        return builder.bitcast(builder.shl(exponent, word(23)), ir.FloatType())

    return types.float32(types.float32), generate


@part
def exp(x: float) -> float:
    """e^x in fp32, relative error 2e-7 (1 + |x| / 2); unlike the library's it vectorises. Cut off at 1e-38 and 1e38."""
    x = x if x > float32(-87.0) else float32(-87.0)  # min() and max() would keep loops from being vectorised
    x = x if x < float32(88.0) else float32(88.0)
    y = x * float32(1.44269504)
    whole = _nearest(y)
    f = y - whole
    # Taylor series of 2^f on [-0.5, 0.5], remainder below 1e-8
    p = float32(1.52527338e-5)
    p = p * f + float32(1.54035304e-4)
    p = p * f + float32(1.33335581e-3)
    p = p * f + float32(9.61812911e-3)
    p = p * f + float32(5.55041087e-2)
    p = p * f + float32(0.240226507)
    p = p * f + float32(0.693147181)
    p = p * f + float32(1.0)
    return p * _power_of_two(whole)
