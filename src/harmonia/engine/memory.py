"""Will it fit? Every byte that serving a model can need, counted before anything large is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import psutil
import torch

from harmonia.config import EngineConfig, SchedulerConfig
from harmonia.errors import InsufficientMemoryError, InvalidRequestError
from harmonia.layers.linear import WeightFormat
from harmonia.models import ModelConfig, open_model
from harmonia.models.sizes import (
    activation_bytes,
    kv_bytes_per_token,
    logits_bytes,
    lora_bytes_per_rank,
    weight_bytes,
)

_MIN_CACHE_LEN = 2048
"""Tokens of cache below which an automatic plan counts as not fitting."""
_CPU_CACHE_SHARE = 0.25
"""Share of the free memory that an automatic cache takes on a CPU, which other programs need too."""
_RUNTIME_BYTES = {"cpu": 350 << 20, "cuda": 1200 << 20}
"""Libraries, kernels and driver context beside what we allocate; see `benchmarks memory`."""
_BATCH_TOKENS = {"cpu": 512, "cuda": 8192}
_PREFILL_TOKENS = {"cpu": 256, "cuda": 8192}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PlanRow(msgspec.Struct, frozen=True):
    """One line of the table."""

    name: str
    num_bytes: int
    note: str = ""


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The table of bytes for one model on one device."""

    model: str
    device: str
    precision: str
    rows: tuple[PlanRow, ...]
    available_bytes: int
    kv_cache_len: int
    max_seq_len: int
    levers: tuple[str, ...] = ()
    """What would make it fit; empty when it does."""

    @property
    def total_bytes(self) -> int:
        """Sum of the rows."""
        return sum(row.num_bytes for row in self.rows)

    @property
    def fits(self) -> bool:
        """The device has room for all of it."""
        return self.total_bytes <= self.available_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and for the error's details."""
        plan: dict[str, Any] = msgspec.to_builtins(self)
        return {**plan, "total_bytes": self.total_bytes, "fits": self.fits}

    def require(self) -> None:
        """Raise `InsufficientMemoryError` with table and levers unless it fits."""
        if self.fits:
            return
        raise InsufficientMemoryError(
            f"{self.model} needs {_gib(self.total_bytes)} on {self.device}, and {_gib(self.available_bytes)} may be "
            f"used. What would help: {'; '.join(self.levers)}",
            **self.to_dict(),
        )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Settings with everything automatic resolved, and the memory they take."""

    config: EngineConfig
    scheduler: SchedulerConfig
    device: str
    precision: str
    num_blocks: int
    max_seq_len: int
    memory: MemoryPlan

    @property
    def fmt(self) -> WeightFormat:
        """Type and place of the weights."""
        return _weight_format(self.device, self.precision)


def plan_memory(model_path: str, config: EngineConfig) -> MemoryPlan:
    """Read the headers of a model and count; loads no weights."""
    return make_plan(Path(model_path).name, open_model(model_path).config, config).memory


def make_plan(name: str, model: ModelConfig, config: EngineConfig) -> Plan:
    """Resolve every automatic setting for a model; whether it fits stands in `memory`."""
    device = _device(config)
    precision = _precision(config, device)
    fmt = _weight_format(device, precision)
    batch_tokens = config.scheduler.max_batch_tokens or _BATCH_TOKENS[device]
    prefill_tokens = config.scheduler.max_prefill_tokens or min(batch_tokens, _PREFILL_TOKENS[device])
    scheduler = msgspec.structs.replace(
        config.scheduler, max_batch_tokens=batch_tokens, max_prefill_tokens=prefill_tokens
    )
    wanted_len = _wanted_seq_len(model, config)
    fixed = _fixed_rows(model, config, scheduler, fmt)
    available = int(_free_bytes(device) * config.memory_fraction)
    per_token = kv_bytes_per_token(model, fmt)
    cache_len = _cache_len(config, device, available - sum(row.num_bytes for row in fixed), per_token)
    block_size = config.cache.block_size
    num_blocks = -(-cache_len // block_size)
    max_seq_len = min(wanted_len, num_blocks * block_size)
    cache_row = PlanRow("key/value cache", num_blocks * block_size * per_token, f"{num_blocks * block_size} tokens")
    memory = MemoryPlan(
        model=name,
        device=device,
        precision=precision,
        rows=(*fixed, cache_row),
        available_bytes=available,
        kv_cache_len=num_blocks * block_size,
        max_seq_len=max_seq_len,
    )
    if memory.total_bytes > available:
        memory = msgspec.structs.replace(memory, levers=_levers(memory, model, config, per_token))
    return Plan(
        config=config,
        scheduler=scheduler,
        device=device,
        precision=precision,
        num_blocks=num_blocks,
        max_seq_len=max_seq_len,
        memory=memory,
    )


def _fixed_rows(
    model: ModelConfig, config: EngineConfig, scheduler: SchedulerConfig, fmt: WeightFormat
) -> tuple[PlanRow, ...]:
    """Everything but the cache."""
    assert scheduler.max_batch_tokens is not None
    tokens, running = scheduler.max_batch_tokens, scheduler.max_running
    rows = config.adapter_rank_budget if config.max_adapters else 0
    return (
        *(PlanRow(f"weights: {kind}", size) for kind, size in weight_bytes(model, fmt).items()),
        PlanRow("adapters", rows * lora_bytes_per_rank(model, fmt), f"{rows} rank rows"),
        PlanRow("activations", activation_bytes(model, fmt, tokens), f"{tokens} tokens a step"),
        PlanRow("logits and sampling", logits_bytes(model, running), f"{running} sequences"),
        PlanRow("runtime", _RUNTIME_BYTES[fmt.device.type], "libraries and driver"),
    )


def _cache_len(config: EngineConfig, device: str, room: int, per_token: int) -> int:
    """Tokens of cache: what was asked for, or what fits, at least the useful minimum."""
    if config.cache.kv_cache_len is not None:
        if config.cache.kv_cache_len < config.cache.block_size:
            raise InvalidRequestError(
                f"kv_cache_len must be at least one block of {config.cache.block_size} tokens, "
                f"got {config.cache.kv_cache_len}",
                field="kv_cache_len",
            )
        return config.cache.kv_cache_len
    if device == "cpu":
        room = min(room, int(_free_bytes(device) * _CPU_CACHE_SHARE))
    return max(_MIN_CACHE_LEN, min(config.cache.default_kv_cache_len, room // per_token))


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


def _levers(memory: MemoryPlan, model: ModelConfig, config: EngineConfig, per_token: int) -> tuple[str, ...]:
    """What to change, most useful first, with what each would save."""
    over = memory.total_bytes - memory.available_bytes
    levers = []
    block_size = config.cache.block_size
    best_len = (memory.kv_cache_len * per_token - over) // (per_token * block_size) * block_size
    if best_len >= _MIN_CACHE_LEN:
        levers.append(f"--kv-cache-len {best_len} fits")
    else:
        levers.append(f"free {_gib(over)} more on the device, or use a smaller model")
    for precision in ("int8", "bfloat16"):
        saved = _weights(model, memory.device, memory.precision) - _weights(model, memory.device, precision)
        if saved > 0 and (precision != "bfloat16" or memory.device == "cuda"):
            levers.append(f"--precision {precision} saves {_gib(saved)}")
    adapters = next(row.num_bytes for row in memory.rows if row.name == "adapters")
    if adapters:
        levers.append(f"--max-adapters 0 saves {_gib(adapters)}")
    if config.memory_fraction < 1:
        levers.append(f"memory_fraction is {config.memory_fraction}; up to 1.0 is allowed")
    return tuple(levers)


def _weights(model: ModelConfig, device: str, precision: str) -> int:
    return sum(weight_bytes(model, _weight_format(device, precision)).values())


def _device(config: EngineConfig) -> str:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequestError("device is 'cuda', but torch sees no GPU; use --device cpu", field="device")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _precision(config: EngineConfig, device: str) -> str:
    if config.precision == "auto":
        return "bfloat16" if device == "cuda" else "float32"
    return config.precision


def _weight_format(device: str, precision: str) -> WeightFormat:
    int8 = precision == "int8"
    compute = "float32" if int8 and device == "cpu" else "bfloat16" if int8 else precision
    return WeightFormat(_DTYPES[compute], torch.device(device), int8)


def _free_bytes(device: str) -> int:
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


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
