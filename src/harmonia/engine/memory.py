"""Will it fit? Every byte that a backbone and its instances can need, counted before anything large is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil
import torch

from harmonia.config import EngineConfig, SchedulerConfig
from harmonia.engine.graph_plan import draft_graph_sizes, graph_bytes, graph_sizes
from harmonia.engine.inputs import input_bytes
from harmonia.engine.levers import MIN_CACHE_LEN, Change, find_levers
from harmonia.engine.needs import (
    DRAFT_ROW,
    InstanceNeed,
    PlanRow,
    bank_row,
    check_needs,
    instance_rows,
    rank_rows,
    sampled_rows,
    training_footprint,
    training_rows,
)
from harmonia.engine.plan import MemoryPlan, Plan, check_invariant, weight_format
from harmonia.errors import InvalidRequestError
from harmonia.layers.linear import WeightFormat
from harmonia.models import ModelConfig, ModelSource, open_model
from harmonia.models.exact import exact_weights
from harmonia.models.sizes import kv_bytes_per_token, loading_bytes, weight_bytes

__all__ = ["InstanceNeed", "MemoryPlan", "Plan", "PlanRow", "make_plan", "plan_memory"]

_CPU_CACHE_SHARE = 0.25
"""Share of the free memory that an automatic cache takes on a CPU, which other programs need too."""
_RUNTIME_BYTES = {"cpu": 150 << 20, "cuda": 770 << 20}
"""Libraries, kernels and driver context beside what we allocate; see `benchmarks memory`."""
_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
_PREFILL_TOKENS = {"cpu": 256, "cuda": 8192}


def plan_memory(
    model_path: str, config: EngineConfig, needs: Sequence[InstanceNeed] = (), *, draft_path: str | None = None
) -> MemoryPlan:
    """Read the headers of a model, and of its draft, and count; loads no weights."""
    draft = None if draft_path is None else open_model(draft_path)
    return make_plan(Path(model_path).name, open_model(model_path), config, needs=needs, draft=draft).memory


def make_plan(
    name: str,
    model: ModelConfig | ModelSource,
    config: EngineConfig,
    *,
    available: int | None = None,
    needs: Sequence[InstanceNeed] = (),
    num_blocks: int | None = None,
    draft: ModelConfig | ModelSource | None = None,
) -> Plan:
    """Resolve every automatic setting for a backbone with these instances; whether it fits stands in `memory`.

    model: a source tells which weights are exact in bf16 and so take half on a CPU; a configuration counts fp32.
    available: bytes that may be used for everything in the table; None measures the free memory.
    num_blocks: the cache that is already there, which an explicit `kv_cache_len` may let grow; None chooses one.
    draft: a model that proposes tokens and keeps its keys and values in the same blocks.
    """
    needs = tuple(needs)
    check_needs(needs)
    request = _Request(name, model, config, available, needs, num_blocks, draft)
    plan = _resolve(request)
    if plan.memory.fits:
        return plan
    levers = find_levers(plan, lambda changed: _resolve(_changed(request, changed)))
    return msgspec.structs.replace(plan, memory=msgspec.structs.replace(plan.memory, levers=levers))


class _Request(NamedTuple):
    """The arguments of `make_plan`."""

    name: str
    model: ModelConfig | ModelSource
    config: EngineConfig
    available: int | None
    needs: tuple[InstanceNeed, ...]
    num_blocks: int | None
    draft: ModelConfig | ModelSource | None


def _changed(request: _Request, change: Change) -> _Request:
    """The same question with another configuration or other instances."""
    draft = request.draft if change.drafts else None
    return request._replace(config=change.config or request.config, needs=change.needs or request.needs, draft=draft)


def _resolve(request: _Request) -> Plan:
    """The plan without levers."""
    config, needs = request.config, request.needs
    model = _config(request.model)
    device = _device(config)
    precision = _precision(config, device, model)
    fmt = weight_format(device, precision, invariant=config.invariant)
    check_invariant(fmt, precision, model.head_dim)
    scheduler = _scheduler(config, device)
    wanted_len = _wanted_seq_len(model, config)
    is_full = any(need.trains and need.full for need in needs)
    exact = frozenset[str]() if is_full else _exact(request.model, fmt)
    fixed = (
        *(PlanRow(f"weights: {kind}", size) for kind, size in weight_bytes(model, fmt, exact).items()),
        *_step_rows(request, scheduler, fmt, wanted_len),
        *_draft_rows(request, scheduler, fmt, wanted_len),
        bank_row(model, config, fmt, needs),
        *instance_rows(model, fmt, needs),
        PlanRow("runtime", _RUNTIME_BYTES[device], "libraries and driver"),
    )
    training = training_footprint(model, fmt, needs)
    available = _available(request, device)
    per_block = _block_bytes(request, fmt)
    room = available - sum(row.num_bytes for row in fixed)
    least = _least_blocks(config, request.num_blocks)
    is_chosen = request.num_blocks is None and config.cache.kv_cache_len is None
    most_tokens = None if is_chosen else least * config.cache.block_size
    steps = _steps_within(scheduler, most_tokens)
    sampled = sampled_rows(steps, needs)
    kept_rows, num_kept, num_whole = training_rows(model, fmt, steps, sampled, training, room - least * per_block)
    room -= sum(row.num_bytes for row in kept_rows)
    num_blocks = max(least, _most_blocks(config, device, room, available, per_block)) if is_chosen else least
    tokens = num_blocks * config.cache.block_size
    rows = (*fixed, *kept_rows, PlanRow("key/value cache", num_blocks * per_block, f"{tokens} tokens"))
    if request.num_blocks is None:
        rows = (*rows, *_loading_rows(rows, loading_bytes(model, fmt)))
    memory = MemoryPlan(
        model=request.name,
        device=device,
        precision=precision,
        invariant=config.invariant,
        rows=tuple(row for row in rows if row.num_bytes or row.name == "adapters"),
        available_bytes=available,
        kv_cache_len=tokens,
        max_seq_len=min(wanted_len, tokens),
        num_layers=model.num_layers,
        num_kept=num_kept,
        num_whole=num_whole,
        max_batch_size=max((need.max_batch_size or 0 for need in needs if need.trains), default=0),
    )
    return Plan(
        config=config,
        scheduler=scheduler,
        device=device,
        precision=precision,
        num_blocks=num_blocks,
        max_seq_len=memory.max_seq_len,
        memory=memory,
        needs=needs,
    )


def _config(model: ModelConfig | ModelSource) -> ModelConfig:
    return model.config if isinstance(model, ModelSource) else model


def _exact(model: ModelConfig | ModelSource, fmt: WeightFormat) -> frozenset[str]:
    """Weights that are exact in bf16, as far as that matters and the files are there."""
    return exact_weights(model) if isinstance(model, ModelSource) and fmt.dtype is torch.float32 else frozenset()


def _block_bytes(request: _Request, fmt: WeightFormat) -> int:
    """Of one block of the cache, with the draft's part."""
    models = (request.model,) if request.draft is None else (request.model, request.draft)
    return request.config.cache.block_size * sum(kv_bytes_per_token(_config(model), fmt) for model in models)


def _draft_rows(
    request: _Request, scheduler: SchedulerConfig, fmt: WeightFormat, max_seq_len: int
) -> tuple[PlanRow, ...]:
    if request.draft is None:
        return ()
    draft, config = _config(request.draft), msgspec.structs.replace(request.config, scheduler=scheduler)
    weights = sum(weight_bytes(draft, fmt, _exact(request.draft, fmt)).values())
    graphs = graph_bytes(draft, config, fmt, draft_graph_sizes(scheduler.max_running), is_draft=True)
    return (
        PlanRow(DRAFT_ROW, weights),
        PlanRow("draft: graphs", graphs, "captured steps"),
        PlanRow("draft: step inputs", input_bytes(config, max_seq_len, fmt.device), "tokens, positions, blocks"),
    )


def _step_rows(
    request: _Request, scheduler: SchedulerConfig, fmt: WeightFormat, max_seq_len: int
) -> tuple[PlanRow, ...]:
    """What is kept for steps on a GPU."""
    config = msgspec.structs.replace(request.config, scheduler=scheduler)
    sizes = graph_sizes(sampled_rows(scheduler, request.needs))
    adapted = rank_rows(config, request.needs) > 0
    return (
        PlanRow("graphs", graph_bytes(_config(request.model), config, fmt, sizes, adapted=adapted), "captured steps"),
        PlanRow("step inputs", input_bytes(config, max_seq_len, fmt.device), "tokens, positions, blocks"),
    )


def _available(request: _Request, device: str) -> int:
    if request.available is not None:
        return request.available
    return int(free_bytes(device) * request.config.memory_fraction)


def _scheduler(config: EngineConfig, device: str) -> SchedulerConfig:
    batch_tokens = config.scheduler.max_batch_tokens or _BATCH_TOKENS[device]
    prefill_tokens = config.scheduler.max_prefill_tokens or min(batch_tokens, _PREFILL_TOKENS[device])
    return msgspec.structs.replace(config.scheduler, max_batch_tokens=batch_tokens, max_prefill_tokens=prefill_tokens)


def _steps_within(scheduler: SchedulerConfig, cache_tokens: int | None) -> SchedulerConfig:
    """No step has more tokens than a cache of a known size has room for."""
    if cache_tokens is None or scheduler.max_batch_tokens is None:
        return scheduler
    return msgspec.structs.replace(scheduler, max_batch_tokens=min(scheduler.max_batch_tokens, cache_tokens))


def _loading_rows(rows: Sequence[PlanRow], num_bytes: int) -> tuple[PlanRow, ...]:
    """What filling and packing the weights takes beyond everything that comes later."""
    later = sum(row.num_bytes for row in rows if row.name != "runtime")
    return (PlanRow("loading", num_bytes - later, "given back when loaded"),) if num_bytes > later else ()


def _least_blocks(config: EngineConfig, num_blocks: int | None) -> int:
    """Blocks that the cache must have: what is there or was asked for, or the useful minimum."""
    cache = config.cache
    if cache.kv_cache_len is not None and cache.kv_cache_len < cache.block_size:
        raise InvalidRequestError(
            f"kv_cache_len must be at least one block of {cache.block_size} tokens, got {cache.kv_cache_len}",
            field="kv_cache_len",
        )
    if num_blocks is not None:
        return max(num_blocks, -(-(cache.kv_cache_len or 0) // cache.block_size))
    wanted = cache.kv_cache_len if cache.kv_cache_len is not None else max(MIN_CACHE_LEN, config.max_seq_len or 0)
    return -(-wanted // cache.block_size)


def _most_blocks(config: EngineConfig, device: str, room: int, available: int, per_block: int) -> int:
    """Blocks of an automatic cache: what is left, up to a ceiling."""
    if device == "cpu":
        room = min(room, int(available * _CPU_CACHE_SHARE))
    return min(-(-config.cache.default_kv_cache_len // config.cache.block_size), room // per_block)


def _wanted_seq_len(model: ModelConfig, config: EngineConfig) -> int:
    wanted = config.max_seq_len
    if wanted is None:
        return model.max_seq_len
    if not 2 <= wanted <= model.max_seq_len:
        raise InvalidRequestError(
            f"max_seq_len must be between 2 and the model's own limit of {model.max_seq_len}, got {wanted}",
            field="max_seq_len",
        )
    cache_len = config.cache.kv_cache_len
    if cache_len is not None and cache_len < wanted:
        raise InvalidRequestError(
            f"kv_cache_len {cache_len} cannot hold one sequence of max_seq_len {wanted}; raise it or lower max_seq_len",
            field="kv_cache_len",
        )
    return wanted


def _device(config: EngineConfig) -> str:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequestError("device is 'cuda', but torch sees no GPU; use --device cpu", field="device")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _precision(config: EngineConfig, device: str, model: ModelConfig) -> str:
    if config.precision == "auto" and device == "cuda":
        return "bfloat16" if model.fp8_side is None else "fp8"
    if config.precision == "auto":
        return "float32"
    return config.precision


def free_bytes(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return min([int(psutil.virtual_memory().available), *_cgroup_free()])


def _cgroup_free() -> list[int]:
    """What the container's limit leaves, when there is one."""
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = ((root / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [int(limit) - int(used)] if limit != "max" else []
