"""`harmonia worker`: a bare worker, on which clients spawn models and train them."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.markup import escape

from harmonia.cli.app import app
from harmonia.cli.options import (
    DEFAULTS,
    DeviceOption,
    Graphs,
    Invariant,
    MaxAdapterRank,
    MaxAdapters,
    PrecisionOption,
    Registry,
    Threads,
    engine_config,
    with_port,
    worker_address,
)
from harmonia.cli.reporting import configure_log, reported
from harmonia.cli.tables import print_error
from harmonia.config import WorkerConfig
from harmonia.errors import HarmoniaError, UnavailableError
from harmonia.fleet import LocalFleet
from harmonia.protocol.fleet import WorkerState


@app.command()
def worker(
    host: Annotated[
        str, typer.Option(help="Address to bind. There are no passwords: whoever reaches it may use the worker.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 9100,
    registry: Registry = None,
    precision: PrecisionOption = "auto",
    invariant: Invariant = False,
    graphs: Graphs = True,
    device: DeviceOption = "auto",
    threads: Threads = None,
    max_adapters: MaxAdapters = DEFAULTS.max_adapters,
    max_adapter_rank: MaxAdapterRank = DEFAULTS.max_adapter_rank,
    memory_fraction: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the device's free memory that models may use.")
    ] = DEFAULTS.memory_fraction,
) -> None:
    """Start a worker without a model, for clients that spawn and train.

    Prints its address when it is ready. Models are loaded when a client spawns them, share their base
    model's weights, and are freed when the client ends. Ctrl-C ends the worker.

    [bold]Examples[/bold]

      harmonia worker

      harmonia worker --port 9200 --registry ./models --device cuda

    and then, in Python:

      from harmonia.client import get_client

      client = await get_client("ws://127.0.0.1:9100")

      model = await client.model("./Qwen3-0.6B").with_adapter().spawn_train("policy", 4096)
    """
    engine = engine_config(
        precision=precision,
        device=device,
        threads=threads,
        max_adapters=max_adapters,
        max_adapter_rank=max_adapter_rank,
    )
    engine = msgspec.structs.replace(engine, memory_fraction=memory_fraction, invariant=invariant, graphs=graphs)
    with reported():
        configure_log()
        config = with_port(WorkerConfig(engine=engine), host, port, registry)
    raise typer.Exit(uvloop.run(run(config)))


async def run(config: WorkerConfig) -> int:
    """Keep a worker running until a signal; the exit code."""
    console = Console(stderr=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    fleet = LocalFleet()
    following, stopping = asyncio.create_task(_follow(fleet, config, console)), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((following, stopping), return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            print_error(console, following.result())
            return 1
        return 0
    finally:
        following.cancel()
        stopping.cancel()
        await fleet.close()


async def _follow(fleet: LocalFleet, config: WorkerConfig, console: Console) -> HarmoniaError:
    """Tell of the worker whenever it is ready; returns why it cannot be started."""
    await fleet.start(config)
    async for status in fleet.watch():
        if status.state is WorkerState.READY:
            address, folder = worker_address(config), config.registry_folder()
            console.print(f"[green]ready[/green] at [bold]{escape(address)}[/bold], models in {escape(str(folder))}")
        elif status.state is WorkerState.FAILED and status.failure is not None:
            return status.failure.error()
    return UnavailableError("the worker is gone")
