"""Products of rows with rows in compiled kernels: sums over features that are the same bits in a tile of any size.

A sum has 16 lanes: lane i adds the features i, i + 16, i + 32 ... in order, then a fixed tree adds the lanes. However
many tokens and rows of a weight share a tile, each of their sums is taken like this. After a change in this file delete
`__pycache__/*.nbi`, as for `native_code`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from harmonia.kernels.native_code import intrinsic, part

_code: Any = cgutils
_LANES = 16
_WORD, _HALF_WORD, _FLOAT, _BYTE = ir.IntType(64), ir.IntType(32), ir.FloatType(), ir.IntType(8)
_VECTOR, _INDICES = ir.VectorType(_FLOAT, _LANES), ir.VectorType(_HALF_WORD, _LANES)


def _dots(num_tokens: int, num_rows: int, *, int8: bool = False) -> Any:
    """y[token, row] = x[token] . w[row] for so many tokens and rows of a weight.

    Arguments: (x, x_stride, w, w_stride, y, y_stride, size) as addresses and bytes from row to row. int8: so is w.
    """
    pairs = [(token, row) for token in range(num_tokens) for row in range(num_rows)]

    def step(builder: Any, values: Any, feature: Any, sums: dict[tuple[int, int], Any], mask: Any) -> None:
        x, x_stride, w, w_stride, *_ = values
        fma = _code.get_or_insert_function(builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), "llvm.fma.v16f32")
        x_at = builder.add(x, builder.mul(feature, _WORD(4)))
        w_at = builder.add(w, builder.mul(feature, _WORD(1 if int8 else 4)))
        x_of_token = [_load(builder, _row(builder, x_at, x_stride, token), _FLOAT, mask) for token in range(num_tokens)]
        for row in range(num_rows):
            w_16 = _load(builder, _row(builder, w_at, w_stride, row), _BYTE if int8 else _FLOAT, mask)
            w_16 = builder.sitofp(builder.sext(w_16, _INDICES), _VECTOR) if int8 else w_16
            for token in range(num_tokens):
                place = sums[token, row]
                builder.store(builder.call(fma, [x_of_token[token], w_16, builder.load(place)]), place)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        y, y_stride, size = values[4:]
        sums = {pair: _code.alloca_once_value(builder, ir.Constant(_VECTOR, None)) for pair in pairs}
        whole, rest = builder.ashr(size, _WORD(4)), builder.and_(size, _WORD(_LANES - 1))
        with _code.for_range(builder, whole) as loop:
            step(builder, values, builder.mul(loop.index, _WORD(_LANES)), sums, None)
        with builder.if_then(builder.icmp_signed("!=", rest, _WORD(0))):
            step(builder, values, builder.mul(whole, _WORD(_LANES)), sums, _first_lanes(builder, rest))
        for token, row in pairs:
            target = builder.add(_row(builder, y, y_stride, token), _WORD(4 * row))
            number = _sum_of_lanes(builder, builder.load(sums[token, row]))
            builder.store(number, builder.inttoptr(target, _FLOAT.as_pointer())).align = 4
        return context.get_dummy_value()

    @intrinsic
    def dots(context: Any, x: Any, x_stride: Any, w: Any, w_stride: Any, y: Any, y_stride: Any, size: Any) -> Any:
        return types.void(*[types.int64] * 7), generate

    return dots


def _row(builder: Any, address: Any, stride: Any, row: int) -> Any:
    return builder.add(address, builder.mul(stride, _WORD(row)))


def _load(builder: Any, address: Any, element: Any, mask: Any) -> Any:
    """16 elements; zeros, and nothing read, where the mask is not set."""
    many = ir.VectorType(element, _LANES)
    place = builder.inttoptr(address, many.as_pointer())
    if mask is None:
        loaded = builder.load(place)
        loaded.align = 4 if element is _FLOAT else 1
        return loaded
    name = f"llvm.masked.load.v16{'f32' if element is _FLOAT else 'i8'}.p0"
    function_type = ir.FunctionType(many, [many.as_pointer(), _HALF_WORD, ir.VectorType(ir.IntType(1), _LANES), many])
    function = _code.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, [place, _HALF_WORD(1), mask, ir.Constant(many, None)])


def _first_lanes(builder: Any, count: Any) -> Any:
    """A mask of the first so many lanes."""
    undefined = _INDICES(ir.Undefined)
    first = builder.insert_element(undefined, builder.trunc(count, _HALF_WORD), _HALF_WORD(0))
    limit = builder.shuffle_vector(first, undefined, _INDICES(None))
    return builder.icmp_signed("<", ir.Constant(_INDICES, list(range(_LANES))), limit)


def _sum_of_lanes(builder: Any, total: Any) -> Any:
    for width in (8, 4, 2, 1):
        indices = ir.VectorType(_HALF_WORD, width)
        lower, upper = (ir.Constant(indices, list(range(start, start + width))) for start in (0, width))
        halves = [builder.shuffle_vector(total, total, half) for half in (lower, upper)]
        total = builder.fadd(*halves)
    return builder.extract_element(total, _HALF_WORD(0))


_dots_1_4, _dots_2_4, _dots_3_4, _dots_4_4 = _dots(1, 4), _dots(2, 4), _dots(3, 4), _dots(4, 4)
_dots_1_1, _dots_4_1 = _dots(1, 1), _dots(4, 1)
_int8_dots_1_4, _int8_dots_2_4 = _dots(1, 4, int8=True), _dots(2, 4, int8=True)
_int8_dots_3_4, _int8_dots_4_4 = _dots(3, 4, int8=True), _dots(4, 4, int8=True)
_int8_dots_1_1, _int8_dots_4_1 = _dots(1, 1, int8=True), _dots(4, 1, int8=True)


@part
def dots_of_tile(
    x: int, x_stride: int, w: int, w_stride: int, y: int, y_stride: int, size: int, tokens: int, rows: int
) -> None:
    """y[token, row] = x[token] . w[row] for up to 4 tokens and any number of rows, in fp32."""
    whole = rows // 4 * 4
    for row in range(0, whole, 4):
        w_4, y_4 = w + row * w_stride, y + 4 * row
        if tokens == 4:
            _dots_4_4(x, x_stride, w_4, w_stride, y_4, y_stride, size)
        elif tokens == 3:
            _dots_3_4(x, x_stride, w_4, w_stride, y_4, y_stride, size)
        elif tokens == 2:
            _dots_2_4(x, x_stride, w_4, w_stride, y_4, y_stride, size)
        else:
            _dots_1_4(x, x_stride, w_4, w_stride, y_4, y_stride, size)
    for row in range(whole, rows):
        if tokens == 4:
            _dots_4_1(x, x_stride, w + row * w_stride, w_stride, y + 4 * row, y_stride, size)
        else:
            for token in range(tokens):
                x_1, y_1 = x + token * x_stride, y + 4 * row + token * y_stride
                _dots_1_1(x_1, x_stride, w + row * w_stride, w_stride, y_1, y_stride, size)


@part
def int8_dots_of_tile(
    x: int, x_stride: int, w: int, w_stride: int, y: int, y_stride: int, size: int, tokens: int, rows: int
) -> None:
    """As `dots_of_tile`, with rows of a weight in int8: the same bits as if they were widened before."""
    whole = rows // 4 * 4
    for row in range(0, whole, 4):
        w_4, y_4 = w + row * w_stride, y + 4 * row
        if tokens == 4:
            _int8_dots_4_4(x, x_stride, w_4, w_stride, y_4, y_stride, size)
        elif tokens == 3:
            _int8_dots_3_4(x, x_stride, w_4, w_stride, y_4, y_stride, size)
        elif tokens == 2:
            _int8_dots_2_4(x, x_stride, w_4, w_stride, y_4, y_stride, size)
        else:
            _int8_dots_1_4(x, x_stride, w_4, w_stride, y_4, y_stride, size)
    for row in range(whole, rows):
        if tokens == 4:
            _int8_dots_4_1(x, x_stride, w + row * w_stride, w_stride, y + 4 * row, y_stride, size)
        else:
            for token in range(tokens):
                x_1, y_1 = x + token * x_stride, y + 4 * row + token * y_stride
                _int8_dots_1_1(x_1, x_stride, w + row * w_stride, w_stride, y_1, y_stride, size)
