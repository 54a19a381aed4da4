"""Options that commands share, and what they mean for the engine's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from harmonia.config import CacheConfig, EngineConfig, WorkerConfig
from harmonia.config.engine import Device, Precision
from harmonia.errors import InvalidRequestError
from harmonia.models.drafts import Pairing, pair
from harmonia.models.registry import ModelRegistry
from harmonia.protocol.instances import MAX_DRAFT_STEPS
from harmonia.server import bind

ModelPath = Annotated[
    str,
    typer.Argument(
        help="Hugging Face folder, GGUF file, an adapter's or a draft's folder, or model_registry://KEY.",
        show_default=False,
    ),
]
KvCacheLen = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of key/value cache. A number is a minimum; left out, it fits the device."),
]
MaxSeqLen = Annotated[int | None, typer.Option(min=2, help="Longest prompt plus answer; the model's own by default.")]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        help="auto: bfloat16 on a GPU (fp8 if the model's files are), float32 on a CPU. "
        "int8: weights only, per channel. fp8: weights per channel and activations per token, or fp8 files as they "
        "are; for GPUs that compute in it."
    ),
]
Invariant = Annotated[
    bool,
    typer.Option(
        "--invariant",
        help="Answer a request with the same bits alone and in any batch, and train on the very log-probabilities that "
        "were sampled. Somewhat slower.",
    ),
]
Graphs = Annotated[
    bool,
    typer.Option(
        help="On a GPU, replay captured graphs of decode steps. Without them each step launches hundreds of kernels; "
        "for finding faults."
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="auto takes the GPU when there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads for compute; all cores by default.")]
MaxAdapters = Annotated[int, typer.Option(min=0, help="Adapters that may be loaded at once.")]
MaxAdapterRank = Annotated[int, typer.Option(min=1, help="Largest rank of one adapter.")]
Registry = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        file_okay=False,
        help="Folder of saved models, model_registry://KEY; $HARMONIA_REGISTRY, or ~/.local/share/harmonia/registry.",
    ),
]

Draft = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|ngram",
        help="Smaller model of the same tokenizer that proposes tokens, for the same answers in less time; or ngram: "
        "propose what followed the last tokens when they stood in the conversation before.",
    ),
]
NumDraftSteps = Annotated[
    int | None,
    typer.Option(
        "--num-draft-steps",
        min=1,
        max=MAX_DRAFT_STEPS,
        help="Tokens to propose at a time, at most; by default what the draft was saved with, else 4.",
    ),
]

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


def located(model: str, registry: Path | None) -> Path:
    """Where a model is that was named by its path or by its key; refuses one that is not there."""
    try:
        return _opened(registry).resolve(model)
    except InvalidRequestError as error:
        raise typer.BadParameter(error.message) from error


def paired(model: str, draft: str | None, num_steps: int | None, registry: Path | None) -> Pairing:
    """The same for a model that is to answer, with its draft; refuses what does not go together."""
    try:
        return pair(_opened(registry), model, draft, num_steps)
    except InvalidRequestError as error:
        raise typer.BadParameter(error.message) from error


def worker_address(config: WorkerConfig) -> str:
    """Where protocol clients reach a worker."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"ws://{f'[{host}]' if ':' in host else host}:{config.port}"


def with_port(config: WorkerConfig, host: str, port: int | None, registry: Path | None) -> WorkerConfig:
    """The worker's settings with a port for protocol clients.

    A free port is chosen here and not in the worker: one that is restarted must be found again.
    """
    if port == 0:
        with bind(host, 0) as free:
            port = free.getsockname()[1]
    return msgspec.structs.replace(config, host=host, port=port, registry=_absolute(registry))


def _opened(registry: Path | None) -> ModelRegistry:
    return ModelRegistry(WorkerConfig(registry=_absolute(registry)).registry_folder())


def _absolute(registry: Path | None) -> str:
    """The registry as `WorkerConfig` has it; empty leaves the choice to the environment."""
    return "" if registry is None else str(registry.expanduser().resolve())
