"""The I/O process from start to end: start the device, load the tokenizer, listen, stop in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress

import msgspec
from websockets.asyncio.server import ServerConnection

from harmonia import log, tracing
from harmonia.config import AdapterSource, WorkerConfig
from harmonia.errors import HarmoniaError, UnavailableError, WorkerLostError
from harmonia.models.registry import ModelRegistry
from harmonia.models.source import adapter_base
from harmonia.models.tokenizer import ModelTokenizer
from harmonia.protocol.pulse import answering
from harmonia.worker.bases import open_base
from harmonia.worker.catalogue import Catalogue
from harmonia.worker.connection import Connection
from harmonia.worker.listen import Listeners
from harmonia.worker.process import DEVICE_COMMAND, Device
from harmonia.worker.service import WorkerService

EXIT_LOST = 1
EXIT_FATAL = 3
_FAREWELL_S = 2.0

_log = log.get_logger(__name__)


def run(
    config: WorkerConfig, pulse: socket.socket | None = None, device_command: Sequence[str] = DEVICE_COMMAND
) -> int:
    """Serve until a signal to stop. The exit status: 0, 1 if the device process was lost, 3 if loading failed.

    pulse: over which whoever started this process asks whether it is alive.
    """
    log.configure()
    # Garbage on the socket is the sender's affair: one line, no traceback.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    try:
        tracing.configure("harmonia-worker")
        return asyncio.run(_serve_alive(config, pulse, device_command))
    except HarmoniaError as error:
        _report_fatal(error)
        return EXIT_FATAL
    finally:
        tracing.close()


def _report_fatal(error: HarmoniaError) -> None:
    """The last line on standard error tells the one who started this process what went wrong."""
    fields = {"code": error.code, "message": error.message, "details": error.details}
    sys.stderr.write(f"HARMONIA-FATAL {msgspec.json.encode(fields, enc_hook=str).decode()}\n")
    sys.stderr.flush()


async def _serve_alive(config: WorkerConfig, pulse: socket.socket | None, device_command: Sequence[str]) -> int:
    with nullcontext() if pulse is None else answering(pulse):
        return await _serve(config, device_command)


async def _serve(config: WorkerConfig, device_command: Sequence[str]) -> int:
    listeners = Listeners(config)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    config = _with_real_paths(config)
    device = await Device.start(config, device_command)
    try:
        service = await _until(stop, _load(config, device))
        if service is None:
            return 0
        try:
            return await _listen(listeners, device, service, stop)
        finally:
            service.close()
    finally:
        listeners.close()
        status = await device.stop()
        _log.info("device process ended with status %d", status)


def _with_real_paths(config: WorkerConfig) -> WorkerConfig:
    """Models of the registry by their folders, a saved draft by its target and itself; refuses a draft that reads
    other tokens."""
    registry = ModelRegistry(config.registry_folder())
    adapters = (AdapterSource(key=item.key, path=str(registry.resolve(item.path))) for item in config.adapters)
    engine = config.engine
    if config.model is not None:
        pairing = Catalogue(registry).pair(config.model, engine.draft, engine.num_draft_steps)
        engine = msgspec.structs.replace(engine, draft=pairing.source, num_draft_steps=pairing.num_steps)
        config = msgspec.structs.replace(config, model=str(pairing.model))
    return msgspec.structs.replace(config, adapters=tuple(adapters), engine=engine)


async def _until(stop: asyncio.Event, loading: asyncio.Task[WorkerService]) -> WorkerService | None:
    """The loaded service; None if the signal to stop came first."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if loading.done():
        return loading.result()
    loading.cancel()
    return None


def _load(config: WorkerConfig, device: Device) -> asyncio.Task[WorkerService]:
    async def load() -> WorkerService:
        # The device loads the weights meanwhile; what is wrong with the files is told by whoever finds it first.
        try:
            tokenizer, description = await asyncio.gather(_tokenizer(config.model), device.ready)
        except WorkerLostError as error:
            status = await device.stop()
            what = config.model or "its libraries"
            message = f"the device process ended with status {status} while loading {what}; see the log above"
            raise WorkerLostError(message, status=status) from error
        return WorkerService(config, device, description, tokenizer)

    return asyncio.create_task(load())


async def _tokenizer(model: str | None) -> ModelTokenizer | None:
    if model is None:
        return None
    _, tokenizer = await asyncio.to_thread(open_base, adapter_base(model) or model)
    return tokenizer


async def _listen(listeners: Listeners, device: Device, service: WorkerService, stop: asyncio.Event) -> int:
    connections: set[Connection] = set()

    async def handle(client: ServerConnection) -> None:
        connection = Connection(client, service)
        connections.add(connection)
        try:
            await connection.run()
        finally:
            connections.discard(connection)

    await listeners.start(handle)
    _log.info("serving at %s", " and ".join(listeners.addresses))
    ends = [asyncio.create_task(event.wait()) for event in (stop, device.lost)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    error: HarmoniaError = UnavailableError("the worker is shutting down; retry on another or later")
    if device.lost.is_set():
        error = WorkerLostError(f"{device.end}; retry on another worker")
    listeners.stop(close_connections=False)
    service.fail_all(error)
    await _farewell(connections)
    listeners.close()
    with suppress(TimeoutError):
        await asyncio.wait_for(listeners.wait_closed(), _FAREWELL_S)
    return EXIT_LOST if device.lost.is_set() else 0


async def _farewell(connections: set[Connection]) -> None:
    """Give the last messages a moment to leave."""
    waiting = [asyncio.create_task(connection.drained()) for connection in connections]
    if waiting:
        await asyncio.wait(waiting, timeout=_FAREWELL_S)
