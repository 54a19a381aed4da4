"""What would make a plan fit that does not: every lever is tried before it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from harmonia.config import EngineConfig
from harmonia.engine.needs import DRAFT_ROW, InstanceNeed
from harmonia.engine.plan import Plan, gib

MIN_CACHE_LEN = 2048
"""Tokens of cache below which an automatic plan counts as not fitting."""
_BATCH_STEP = 64
_ADAPTER_RANK = 16


class Change(NamedTuple):
    """What to plan with instead; None leaves it."""

    config: EngineConfig | None = None
    needs: tuple[InstanceNeed, ...] | None = None
    drafts: bool = True


Replan = Callable[[Change], Plan]


def find_levers(plan: Plan, replan: Replan) -> tuple[str, ...]:
    """Settings that would fit, most useful first; then those that help without being enough."""
    over = plan.memory.total_bytes - plan.memory.available_bytes
    found = [*_cache(plan, replan), *_batch(plan, replan), *_adapter(plan, replan), *_others(plan, replan)]
    if not any(lever.endswith(" fits") for lever in found):
        found.insert(0, f"free {gib(over)} more on the device, or use a smaller model")
    if plan.config.memory_fraction < 1:
        found.append(f"memory_fraction is {plan.config.memory_fraction}; up to 1.0 is allowed")
    return tuple(found)


def _cache(plan: Plan, replan: Replan) -> Iterator[str]:
    def with_length(length: int) -> Change:
        cache = msgspec.structs.replace(plan.config.cache, kv_cache_len=length)
        return Change(msgspec.structs.replace(plan.config, cache=cache, max_seq_len=None))

    wanted, block = plan.config.cache.kv_cache_len, plan.config.cache.block_size
    if wanted is None:
        return
    least = max(MIN_CACHE_LEN, plan.config.max_seq_len or 0)
    best = _largest(least // block, wanted // block - 1, lambda blocks: replan(with_length(blocks * block)).memory.fits)
    if best:
        yield f"kv_cache_len {best * block} fits"


def _batch(plan: Plan, replan: Replan) -> Iterator[str]:
    def with_batch(tokens: int) -> Change:
        return Change(needs=tuple(_limited(need, tokens) for need in plan.needs))

    largest = plan.max_batch_size
    step = _BATCH_STEP if largest > _BATCH_STEP else 1
    best = _largest(1, (largest - 1) // step, lambda count: replan(with_batch(count * step)).memory.fits)
    if best:
        yield f"max_batch_size {best * step} fits"


def _limited(need: InstanceNeed, tokens: int) -> InstanceNeed:
    if not need.trains:
        return need
    return msgspec.structs.replace(need, max_batch_size=min(need.max_batch_size or tokens, tokens))


def _adapter(plan: Plan, replan: Replan) -> Iterator[str]:
    """A lower rank, or an adapter in place of all weights."""
    if any(need.full and need.trains for need in plan.needs):
        adapters = tuple(
            msgspec.structs.replace(need, full=False, rank=_ADAPTER_RANK, copies=2) if need.trains else need
            for need in plan.needs
        )
        yield from _verdict(
            f"training an adapter of rank {_ADAPTER_RANK} instead of all weights", plan, replan(Change(needs=adapters))
        )
    largest = max((need.rank for need in plan.needs), default=0)

    def with_rank(rank: int) -> Change:
        return Change(needs=tuple(msgspec.structs.replace(need, rank=min(need.rank, rank)) for need in plan.needs))

    best = _largest(1, largest - 1, lambda rank: replan(with_rank(rank)).memory.fits)
    if best:
        yield f"adapter rank {best} fits"


def _others(plan: Plan, replan: Replan) -> Iterator[str]:
    config = plan.config
    is_full = any(need.full and need.trains for need in plan.needs)
    # On a GPU fp8 is as small as int8 and faster.
    for precision in ("fp8", "bfloat16") if plan.device == "cuda" else ("int8",):
        if precision == plan.precision or (precision != "bfloat16" and is_full):
            continue
        changed = msgspec.structs.replace(config, precision=precision)
        yield from _verdict(f"precision {precision}", plan, replan(Change(changed)))
    if any(row.name == DRAFT_ROW for row in plan.memory.rows):
        yield from _verdict("no draft", plan, replan(Change(drafts=False)))
    if config.max_adapters and config.adapter_rank_budget:
        changed = msgspec.structs.replace(config, max_adapters=0)
        yield from _verdict("max_adapters 0", plan, replan(Change(changed)))


def _verdict(lever: str, plan: Plan, changed: Plan) -> Iterator[str]:
    saved = plan.memory.total_bytes - changed.memory.total_bytes
    if saved > 0:
        yield f"{lever} saves {gib(saved)}" + (" and fits" if changed.memory.fits else "")


def _largest(least: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number that fits, where smaller ones fit too; None when `least` does not."""
    if most < least or not fits(least):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        if fits(middle):
            least = middle
        else:
            most = middle - 1
    return least
