"""Options that commands share, and what they mean for the engine's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harmonia.config import CacheConfig, EngineConfig
from harmonia.config.engine import Device, Precision

ModelPath = Annotated[Path, typer.Argument(help="Hugging Face folder or GGUF file.", show_default=False)]
KvCacheLen = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of key/value cache. A number is a minimum; left out, it fits the device."),
]
MaxSeqLen = Annotated[int | None, typer.Option(min=2, help="Longest prompt plus answer; the model's own by default.")]
PrecisionOption = Annotated[
    Precision,
    typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU. int8: weights only, per channel."),
]
DeviceOption = Annotated[Device, typer.Option(help="auto takes the GPU when there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads for compute; all cores by default.")]
MaxAdapters = Annotated[int, typer.Option(min=0, help="Adapters that may be loaded at once.")]
MaxAdapterRank = Annotated[int, typer.Option(min=1, help="Largest rank of one adapter.")]

DEFAULTS = EngineConfig()


def engine_config(
    kv_cache_len: int | None = None,
    max_seq_len: int | None = None,
    precision: Precision = "auto",
    device: Device = "auto",
    threads: int | None = None,
    max_adapters: int = DEFAULTS.max_adapters,
    max_adapter_rank: int = DEFAULTS.max_adapter_rank,
) -> EngineConfig:
    """The engine's settings for what was given on the command line."""
    return EngineConfig(
        device=device,
        precision=precision,
        max_seq_len=max_seq_len,
        max_adapters=max_adapters,
        max_adapter_rank=max_adapter_rank,
        num_threads=threads,
        cache=CacheConfig(kv_cache_len=kv_cache_len),
    )
