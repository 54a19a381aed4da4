"""`harmonia serve`: a model behind OpenAI's interface."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console

from harmonia import tracing
from harmonia.cli.app import app
from harmonia.cli.options import (
    DEFAULTS,
    DeviceOption,
    Draft,
    Graphs,
    Invariant,
    KvCacheLen,
    MaxAdapterRank,
    MaxAdapters,
    MaxSeqLen,
    ModelPath,
    NumDraftSteps,
    PrecisionOption,
    Registry,
    Threads,
    engine_config,
    located,
    with_port,
)
from harmonia.cli.reporting import configure_log
from harmonia.cli.running import Running
from harmonia.cli.tables import print_error
from harmonia.config import AdapterSource, EngineConfig, WorkerConfig
from harmonia.config.server import ServerConfig
from harmonia.errors import HarmoniaError
from harmonia.protocol.instances import SCHEME

_FILE_SUFFIXES = (".gguf", ".safetensors")


@app.command()
def serve(
    model: ModelPath,
    name: Annotated[str | None, typer.Option(help="Key of the model; the file's or folder's name by default.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=PATH", help="PEFT folder or model_registry://KEY; may be repeated."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind; 127.0.0.1 by default.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 9000 by default, 0 takes a free one.")
    ] = None,
    kv_cache_len: KvCacheLen = None,
    max_seq_len: MaxSeqLen = None,
    precision: PrecisionOption = "auto",
    invariant: Invariant = False,
    graphs: Graphs = True,
    draft: Draft = None,
    draft_steps: NumDraftSteps = None,
    device: DeviceOption = "auto",
    threads: Threads = None,
    max_adapters: MaxAdapters = DEFAULTS.max_adapters,
    max_adapter_rank: MaxAdapterRank = DEFAULTS.max_adapter_rank,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Key that callers must present; may be repeated. None: everyone may call.")
    ] = None,
    max_ttft_ms: Annotated[
        int | None, typer.Option(min=1, help="Give a request up when its first token takes longer, queue included.")
    ] = None,
    worker_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Also take clients that train, on 127.0.0.1; 0 takes a free port."),
    ] = None,
    registry: Registry = None,
) -> None:
    """Serve MODEL over HTTP, with OpenAI's interface under /v1.

    Prints the address and a command to try. Ctrl-C lets running answers finish; a second one ends at once.

    With --worker-port, clients of the recipe API may spawn and train models, which are asked by name beside MODEL.

    [bold]Examples[/bold]

      harmonia serve ./SmolLM2-135M-Instruct.Q4_1.gguf --precision int8

      harmonia serve ./Qwen3-8B --name qwen --adapter support=./loras/support --kv-cache-len 200000

      harmonia serve model_registry://support-v2 --host 0.0.0.0 --api-key "$KEY"

      harmonia serve ./Qwen3-8B --draft ./Qwen3-0.6B --worker-port 9100 --registry ./models
    """
    engine = engine_config(kv_cache_len, max_seq_len, precision, device, threads, max_adapters, max_adapter_rank)
    engine = msgspec.structs.replace(
        engine, invariant=invariant, graphs=graphs, draft=draft, num_draft_steps=draft_steps
    )
    server = server_config(host, port, api_key, max_ttft_ms)
    name = name or (model.removeprefix(SCHEME) if model.startswith(SCHEME) else None)
    worker = worker_config(located(model, registry), name, adapter or [], engine, server.max_ttft_ms)
    worker = with_port(worker, worker.host, worker_port, registry)
    raise typer.Exit(uvloop.run(run(worker, server)))


async def run(worker: WorkerConfig, server: ServerConfig) -> int:
    """Serve until a signal; the exit code."""
    try:
        configure_log()
        tracing.configure("harmonia")
        running = Running(worker, server)
    except HarmoniaError as error:
        print_error(Console(stderr=True), error)
        return 1
    try:
        async with running:
            if not await running.wait_ready():
                return 1
            running.show_address()
            await running.wait_end()
    finally:
        tracing.close()
    return 0


def server_config(
    host: str | None, port: int | None, api_keys: list[str] | None, max_ttft_ms: int | None
) -> ServerConfig:
    """The server's settings: the environment's, with what the command line says on top."""
    config = ServerConfig()
    bound = {"host": host, "port": port}
    changes: dict[str, object] = {
        "server": config.server.model_copy(update={key: value for key, value in bound.items() if value is not None})
    }
    if api_keys:
        changes["api_keys"] = tuple(api_keys)
    if max_ttft_ms is not None:
        changes["max_ttft_ms"] = max_ttft_ms
    return config.model_copy(update=changes)


def worker_config(
    model: Path, name: str | None, adapters: list[str], engine: EngineConfig, max_ttft_ms: int
) -> WorkerConfig:
    """The worker's settings; refuses names that are missing or given twice."""
    if not model.exists():
        raise typer.BadParameter(f"{model} does not exist; give a Hugging Face folder or a GGUF file")
    key = name or default_key(model)
    sources = tuple(_adapter(entry) for entry in adapters)
    keys = [key, *(source.key for source in sources)]
    doubled = next((item for item in keys if keys.count(item) > 1), None)
    if doubled is not None:
        raise typer.BadParameter(f"two models are named {doubled!r}; --name and --adapter KEY=PATH set the names")
    return WorkerConfig(
        model=str(model.resolve()), key=key, socket="", adapters=sources, engine=engine, max_ttft_ms=max_ttft_ms
    )


def default_key(model: Path) -> str:
    """The name of a folder, or of a file without its suffix."""
    resolved = model.resolve()
    return resolved.stem if resolved.suffix in _FILE_SUFFIXES else resolved.name


def _adapter(entry: str) -> AdapterSource:
    key, _, path = entry.partition("=")
    if not key or not path:
        raise typer.BadParameter(f"--adapter wants KEY=PATH, got {entry!r}")
    is_registered = path.startswith(SCHEME)
    return AdapterSource(key=key, path=path if is_registered else str(Path(path).resolve()))
