"""Which kernel multiplies how many tokens with a weight of which sizes on a GPU: measured, and a rule for the rest."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

_PROCESSORS = 132
_MANY_FEATURES = 6144
_MIN_PART = 256  # fewer input features are not worth a sum of their own
_SMALL_WEIGHT = 8 << 20  # numbers: two tokens read it one by one, the second one from the L2 cache


class Choice(NamedTuple):
    """Tile sizes for a kernel of `matmul_triton`."""

    block_t: int
    """Tokens of a tile; one is multiplied without tensor cores."""
    block_n: int
    block_k: int
    parts: int
    """Parts of the input features that are summed apart and then added, in order."""
    stages: int
    warps: int
    swap: bool = False
    """Multiply W x^T instead of x W^T."""
    spread: bool = True
    """Each part in a program of its own, unless there are programs enough."""


# Measured on an H100 80GB HBM3 for Qwen3-8B and Qwen3-0.6B, up to 256 tokens; what is missing is faster in cuBLAS.
# N K tokens at most, then the fields of a choice
_H100 = """
  6144  4096   1  1   1 1024  1 2 2 0
  6144  4096   8  16  64  256  1 3 4 1
  6144  4096  16  16  64  256  1 3 4 1
  6144  4096  32  32  64  128  1 4 4 1
  4096  4096   1  1   1 4096  1 1 4 0
  4096  4096   8  16  32  128  1 5 4 0
  4096  4096  16  16  32  256  1 4 4 0
 24576  4096   1  1   2 2048  1 2 4 0
 24576  4096   8  16  64  128  1 4 4 1
 24576  4096  16  16  64  128  1 4 4 1
 24576  4096  32  32 128  128  1 4 4 1
 24576  4096  64  64  32  128  1 4 4 0
  4096 12288   1  1   1 4096  1 1 4 0
  4096 12288   8  16  32  128  2 5 4 0
  4096 12288  16  16  64  256  2 3 4 1
  4096 12288  32  32  64  128  2 4 4 1
151936  4096   1  1   1 4096  1 1 4 0
151936  4096   8  16 128  128  1 4 4 1
151936  4096  16  16 128  128  1 4 4 1
151936  4096  32  32 128  128  1 4 4 1
151936  4096  64  64 128  128  1 3 8 1
  4096  1024   1  1   4  512  1 3 2 0
  1024  2048   1  1   1 1024  1 2 2 0
  6144  1024   1  1   4  512  1 3 2 0
  6144  1024   8  16  64  128  1 4 4 1
  6144  1024  16  16  64  128  1 4 4 1
  6144  1024  32  32  64  128  1 4 4 1
  6144  1024  64  64  32  128  1 4 4 0
  1024  3072   1  1   1 1024  1 2 2 0
  1024  3072   8  16  32  128  4 5 4 0
  1024  3072  16  16  32  128  4 5 4 0
  1024  3072  32  32  32  128  4 4 4 0
151936  1024   1  1   1 1024  1 2 2 0
151936  1024   8  16  64  128  1 4 4 1
151936  1024  16  16  64  128  1 4 4 1
151936  1024  32  32  64  128  1 4 4 1
151936  1024  64  64  64   64  1 5 4 1
"""


@cache
def fastest(num_tokens: int, num_in: int, num_out: int) -> Choice | None:
    """The fastest kernel on an H100; None where that is cuBLAS.

    What was seen on all sizes is done on others too: one token is faster without tensor cores, and where there are many
    output features few tokens are faster in small tiles.
    """
    if num_tokens == 2 and num_out * num_in <= _SMALL_WEIGHT:
        num_tokens = 1
    known = _table().get((num_out, num_in))
    if known is not None:
        return known.get(next((bucket for bucket in _BUCKETS if num_tokens <= bucket), 0))
    if num_tokens == 1:
        return Choice(1, 2, 1024, 1, 2, 2)
    if num_tokens <= 32 and num_out >= _MANY_FEATURES:
        return Choice(16 if num_tokens <= 16 else 32, 64, 128, 1, 4, 4, swap=True)
    return None


@cache
def invariant(num_tokens: int, num_in: int, num_out: int, itemsize: int) -> Choice:
    """A kernel whose every result is summed in an order that only the weight's sizes decide.

    Tensor cores add 16 products of bf16 at a time to a sum, in any tile and with either instruction (seen on an H100,
    and held by a test); only `parts` changes the order. fp32 is summed by ordinary instructions, in one tile for all.
    """
    parts = max(1, min(_PROCESSORS // -(-num_out // 32), num_in // _MIN_PART))
    many = num_out >= _MANY_FEATURES
    if itemsize == 4:
        choice = Choice(32, 64, 32, parts, 3, 4, swap=True)
    elif num_tokens <= 16:
        choice = Choice(16, 64, 128, parts, 4, 4, swap=True) if many else Choice(16, 32, 128, parts, 5, 4)
    elif num_tokens <= 32:
        choice = Choice(32, 64, 128, parts, 4, 4, swap=True) if parts == 1 else Choice(32, 32, 128, parts, 4, 4)
    elif num_tokens <= 64:
        choice = Choice(64, 32, 128, parts, 4, 4)
    elif -(-num_tokens // 128) * -(-num_out // 128) < _PROCESSORS // 2:
        choice = Choice(128, 64, 64, parts, 4, 4, swap=True)
    else:
        choice = Choice(256 if parts == 1 and num_tokens > 512 else 128, 128, 64, parts, 4, 8, swap=True)
    tiles = -(-num_tokens // choice.block_t) * -(-num_out // choice.block_n)
    return choice._replace(spread=tiles < _PROCESSORS)


_BUCKETS = (1, 8, 16, 32, 64, 128, 256)


@cache
def _table() -> dict[tuple[int, int], dict[int, Choice]]:
    table: dict[tuple[int, int], dict[int, Choice]] = {}
    for line in _H100.strip().splitlines():
        num_out, num_in, bucket, *fields = (int(word) for word in line.split())
        choice = Choice._make((*fields[:-1], bool(fields[-1]), True))
        table.setdefault((num_out, num_in), {})[bucket] = choice
    return table
