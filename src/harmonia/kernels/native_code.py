"""What compiled kernels are written with: memory by address, and what numba turns into slow instructions by itself.

Addresses and sizes are plain integers, floating point is fp32 unless it says otherwise. After a change in this file
delete `__pycache__/*.nbi`: numba checks compiled kernels against their own file only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

# Sums may be taken in another order, but infinities and NaN keep their meaning: masks and callers need them.
FAST_MATH = {"nsz", "arcp", "contract", "reassoc"}

# To a type checker kernels are untyped: numba infers their types.
intrinsic: Any = numba.extending.intrinsic
float32: Any = numba.float32
float64: Any = numba.float64
int32: Any = numba.int32
uint64: Any = numba.uint64
_pointer_to: Any = types.CPointer
_code: Any = cgutils
_carray: Any = vars(numba)["carray"]


def part(function: Callable[..., Any]) -> Any:
    """A piece that kernels are made of."""
    return numba.njit(fastmath=FAST_MATH, error_model="numpy")(function)


@intrinsic
def call_kernel(context: Any, address: Any, arguments: Any, thread: Any, num_threads: Any) -> Any:
    """Run the kernel at this address."""
    word = types.int64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        machine_word = ir.IntType(64)
        function = ir.FunctionType(ir.VoidType(), [machine_word] * 3).as_pointer()
        builder.call(builder.inttoptr(values[0], function), values[1:])
        return context.get_dummy_value()

    return types.void(word, word, word, word), generate


def _pointer_cast(element: Any) -> Any:
    @intrinsic
    def cast(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return _pointer_to(element)(types.int64), generate

    return cast


_as_float32s, _as_float64s = _pointer_cast(types.float32), _pointer_cast(types.float64)
_as_int8s, _as_int16s = _pointer_cast(types.int8), _pointer_cast(types.int16)
_as_int32s, _as_int64s = _pointer_cast(types.int32), _pointer_cast(types.int64)


@part
def float32s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return _carray(_as_float32s(address), (size,))


@part
def float64s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return _carray(_as_float64s(address), (size,))


@part
def int8s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return _carray(_as_int8s(address), (size,))


@part
def int16s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return _carray(_as_int16s(address), (size,))


@part
def int32s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return _carray(_as_int32s(address), (size,))


@part
def int64s(address: int, size: int) -> Any:
    """Memory at the address as an array."""
    return _carray(_as_int64s(address), (size,))


@part
def share(work: int, thread: int, num_threads: int) -> tuple[int, int]:
    """First and last+1 of this thread's part of the work."""
    return work * thread // num_threads, work * (thread + 1) // num_threads


@intrinsic
def _prefetch_line(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _ask_for(builder, values[0], 0)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@part
def prefetch(address: int, size: int) -> None:
    """Ask for memory that is read soon; nothing happens where it does not exist."""
    for line in range(0, size, 64):
        _prefetch_line(address + line)


def _add_product(num_rows: int, num_vectors: int, num_lines: int = 0, *, bf16: bool = False) -> Any:
    """C += A B for some rows of A and 16 columns of B a vector, the sums in registers: 270 GFLOP/s on a Zen 5 core.

    Arguments: (a, a_stride, b, b_stride, c, c_stride, steps, ahead) as addresses and bytes from row to row. Each step
    asks for `num_lines` lines of memory from `ahead` on, so that they arrive while this product is computed.
    bf16: so are the elements of B, which widen to fp32 without loss.
    """
    word, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), 16)
    pairs = [(row, column) for row in range(num_rows) for column in range(num_vectors)]

    def load(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
        loaded = builder.load(builder.inttoptr(builder.add(address, offset), kind.as_pointer()))
        loaded.align = 4
        return loaded

    def load_b(builder: Any, address: Any, column: int) -> Any:
        if not bf16:
            return load(builder, address, word(64 * column), vector)
        words = ir.VectorType(ir.IntType(32), 16)
        upper = load(builder, address, word(32 * column), ir.VectorType(ir.IntType(16), 16))
        return builder.bitcast(builder.shl(builder.zext(upper, words), words([16] * 16)), vector)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        a, a_stride, b, b_stride, c, c_stride, steps, ahead = values
        fma_type = ir.FunctionType(vector, [vector] * 3)
        fma = _code.get_or_insert_function(builder.module, fma_type, "llvm.fma.v16f32")
        places = {
            (row, column): builder.add(builder.mul(c_stride, word(row)), word(64 * column)) for row, column in pairs
        }
        sums = {pair: _code.alloca_once_value(builder, load(builder, c, places[pair], vector)) for pair in pairs}
        with _code.for_range(builder, steps) as loop:
            b_row = builder.add(b, builder.mul(b_stride, loop.index))
            a_column = builder.add(a, builder.mul(word(4), loop.index))
            b_vectors = [load_b(builder, b_row, column) for column in range(num_vectors)]
            for line in range(num_lines):
                _ask_for(builder, builder.add(ahead, builder.mul(loop.index, word(64 * num_lines))), 64 * line)
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

    @intrinsic
    def add_product(
        context: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, c: Any, c_stride: Any, steps: Any, ahead: Any
    ) -> Any:
        return types.void(*[types.int64] * 8), generate

    return add_product


def _ask_for(builder: Any, address: Any, offset: int) -> None:
    """Prefetch a line of memory for reading; nothing happens where there is none."""
    word, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    function_type = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], function_type)
    place = builder.inttoptr(builder.add(address, ir.IntType(64)(offset)), pointer)
    builder.call(function, [place, word(0), word(3), word(1)])


add_product_4_rows_64_columns = _add_product(4, 4)
add_product_4_rows_16_columns = _add_product(4, 1)
add_product_1_row_64_columns = _add_product(1, 4)
add_product_1_row_16_columns = _add_product(1, 1)
add_product_1_row_64_columns_4_lines = _add_product(1, 4, 4)
add_product_4_rows_64_columns_4_lines = _add_product(4, 4, 4)
add_product_4_rows_64_columns_2_lines = _add_product(4, 4, 2)
add_product_4_rows_64_columns_1_line = _add_product(4, 4, 1)
add_product_1_row_64_bf16_columns_2_lines = _add_product(1, 4, 2, bf16=True)
add_product_4_rows_64_bf16_columns_2_lines = _add_product(4, 4, 2, bf16=True)
add_product_4_rows_64_bf16_columns_1_line = _add_product(4, 4, 1, bf16=True)


@intrinsic
def transpose_16_by_16(context: Any, source: Any, source_stride: Any, target: Any, target_stride: Any) -> Any:
    """A square of numbers, its rows so many bytes apart: four rounds of exchanges between pairs of registers."""

    def exchange(builder: Any, rows: list[Any], step: int) -> None:
        lanes = range(16)
        upper = [lane if not lane & step else 16 + lane - step for lane in lanes]
        lower = [lane + step if not lane & step else 16 + lane for lane in lanes]
        for row in (row for row in lanes if not row & step):
            first, second = rows[row], rows[row + step]
            for target_row, mask in ((row, upper), (row + step, lower)):
                indices = ir.Constant(ir.VectorType(ir.IntType(32), 16), mask)
                rows[target_row] = builder.shuffle_vector(first, second, indices)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word, pointer = ir.IntType(64), ir.VectorType(ir.FloatType(), 16).as_pointer()
        source, source_stride, target, target_stride = values
        rows = []
        for row in range(16):
            address = builder.add(source, builder.mul(source_stride, word(row)))
            rows.append(builder.load(builder.inttoptr(address, pointer)))
            rows[row].align = 4
        for step in (8, 4, 2, 1):
            exchange(builder, rows, step)
        for row in range(16):
            address = builder.add(target, builder.mul(target_stride, word(row)))
            builder.store(rows[row], builder.inttoptr(address, pointer)).align = 4
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def _nearest(context: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()]), values)

    return types.float32(types.float32), generate


@intrinsic
def fused(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once, as the products above do."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function_type = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 3)
        return builder.call(_code.get_or_insert_function(builder.module, function_type, "llvm.fma.f32"), values)

    return types.float32(*[types.float32] * 3), generate


@intrinsic
def float_of_bits(context: Any, bits: Any) -> Any:
    """The fp32 number whose bits an int32 holds."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def bits_of_float(context: Any, number: Any) -> Any:
    """The bits of an fp32 number as an int32; positive ones order as the numbers do."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
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
