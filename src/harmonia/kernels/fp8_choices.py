"""Which kernel multiplies how many tokens with which fp8 weight on a GPU: measured, and a rule for the rest."""

from __future__ import annotations

from functools import lru_cache

from harmonia.kernels.matmul_choices import Choice

SIDE = 128
_FEW = 64
"""Tokens up to which reading the weight is what a product takes."""
_PROGRAMS = 264  # of 64 rows each: two on every processor of an H100
_MIN_PART = 512
_BUCKETS = (1, 16, 32, 64, 128, 256)
# N K tokens at most, then the fields of a choice: block_t 0 is the vendor's product, and 1 that without tensor cores.
_H100 = """
6144 4096 1 1 1 4096 1 2 4 0
6144 4096 16 16 64 256 1 4 4 1
6144 4096 64 64 64 256 1 4 4 1
4096 4096 1 1 1 4096 1 2 4 0
4096 4096 16 16 64 256 4 4 4 1
4096 4096 64 64 64 256 1 4 4 1
24576 4096 1 1 2 2048 1 2 4 0
24576 4096 16 16 64 256 1 4 4 1
24576 4096 64 64 64 128 1 4 4 1
4096 12288 1 1 2 2048 1 2 4 0
4096 12288 16 16 64 256 4 4 4 1
4096 12288 64 64 64 256 1 4 4 1
"""


@lru_cache(maxsize=4096)
def choose(num_tokens: int, num_out: int, num_in: int, *, squares: bool) -> Choice | None:
    """None takes the vendor's product, which reads one scale per output feature only."""
    bucket = next((bucket for bucket in _BUCKETS if num_tokens <= bucket), 0)
    measured = None if squares else _table().get((num_out, num_in, bucket))
    if measured is not None:
        return measured if measured.block_t else None
    if num_tokens > _FEW:
        return Choice(128, 128, SIDE, 1, 4, 8) if squares else None
    if num_tokens == 1 and not squares:
        return Choice(1, 2, 2048, 1, 2, 4)
    block_t = next(size for size in (16, 32, 64) if num_tokens <= size)
    block_k = SIDE if squares or block_t > 32 else 2 * SIDE
    return Choice(block_t, 64, block_k, _parts(num_out, num_in), 4, 4, swap=True)


@lru_cache(maxsize=4096)
def choose_invariant(num_tokens: int, num_out: int, num_in: int) -> Choice:
    """Every result is summed in an order that only the weight's sizes decide: see `matmul_choices.invariant`.

    The steps of a sum are of one size, since what a step's products add up to is rounded.
    """
    parts = _parts(num_out, num_in)
    if num_tokens <= 2 * _FEW:
        block_t = next(size for size in (16, 32, 64, 128) if num_tokens <= size)
        return Choice(block_t, 64, SIDE, parts, 4, 4, swap=True)
    tiles = -(-num_tokens // 128) * -(-num_out // 128)
    return Choice(128, 128, SIDE, parts, 3, 8, swap=True, spread=tiles < _PROGRAMS // 2)


@lru_cache(maxsize=1)
def _table() -> dict[tuple[int, int, int], Choice]:
    table = {}
    for line in _H100.strip().splitlines():
        num_out, num_in, bucket, *sizes, swap = (int(word) for word in line.split())
        block_t, block_n, block_k, parts, stages, warps = sizes
        table[num_out, num_in, bucket] = Choice(block_t, block_n, block_k, parts, stages, warps, swap=bool(swap))
    return table


def _parts(num_out: int, num_in: int) -> int:
    return max(1, min(_PROGRAMS // -(-num_out // 64), num_in // _MIN_PART))
