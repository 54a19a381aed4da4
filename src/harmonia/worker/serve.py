"""The I/O process from start to end: start the device, load the tokenizer, listen, stop in order."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from websockets.asyncio.server import ServerConnection, unix_serve

from harmonia import log
from harmonia.config import WorkerConfig
from harmonia.errors import HarmoniaError, InvalidRequestError, UnavailableError, WorkerLostError
from harmonia.models.source import open_model
from harmonia.models.tokenizer import ModelTokenizer, load_tokenizer
from harmonia.worker.connection import Connection
from harmonia.worker.process import DEVICE_COMMAND, Device
from harmonia.worker.service import WorkerService

EXIT_LOST = 1
EXIT_FATAL = 3
MAX_MESSAGE_BYTES = 64 << 20
_MAX_SOCKET_PATH = 103
_FAREWELL_S = 2.0

_log = log.get_logger(__name__)


def run(config: WorkerConfig, device_command: Sequence[str] = DEVICE_COMMAND) -> int:
    """Serve until a signal to stop. The exit status: 0, 1 if the device process was lost, 3 if loading failed."""
    log.configure()
    # Garbage on the socket is the sender's affair: one line, no traceback.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    try:
        return asyncio.run(_serve(config, device_command))
    except HarmoniaError as error:
        _report_fatal(error)
        return EXIT_FATAL


def _report_fatal(error: HarmoniaError) -> None:
    """The last line on standard error tells the one who started this process what went wrong."""
    fields = {"code": error.code, "message": error.message, "details": error.details}
    sys.stderr.write(f"HARMONIA-FATAL {msgspec.json.encode(fields, enc_hook=str).decode()}\n")
    sys.stderr.flush()


async def _serve(config: WorkerConfig, device_command: Sequence[str]) -> int:
    if len(config.socket.encode()) > _MAX_SOCKET_PATH:
        raise InvalidRequestError(
            f"socket path is longer than {_MAX_SOCKET_PATH} bytes: {config.socket}", field="socket"
        )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    device = await Device.start(config, device_command)
    try:
        service = await _until(stop, _load(config, device))
        if service is None:
            return 0
        try:
            return await _listen(config, device, service, stop)
        finally:
            service.close()
    finally:
        status = await device.stop()
        _log.info("device process ended with status %d", status)


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
            tokenizer, description = await asyncio.gather(
                asyncio.to_thread(_open_tokenizer, config.model), device.ready
            )
        except WorkerLostError as error:
            status = await device.stop()
            message = f"the device process ended with status {status} while loading {config.model}; see the log above"
            raise WorkerLostError(message, status=status) from error
        return WorkerService(config, device, description, tokenizer)

    return asyncio.create_task(load())


def _open_tokenizer(model: str) -> ModelTokenizer:
    tokenizer = load_tokenizer(open_model(model))
    tokenizer.token_bytes(0)  # builds its table now, not in front of the first request
    return tokenizer


async def _listen(config: WorkerConfig, device: Device, service: WorkerService, stop: asyncio.Event) -> int:
    connections: set[Connection] = set()

    async def handle(socket: ServerConnection) -> None:
        connection = Connection(socket, service)
        connections.add(connection)
        try:
            await connection.run()
        finally:
            connections.discard(connection)

    # A Unix socket tells by itself when a peer is gone: no pings, so that an idle worker sleeps.
    server = await unix_serve(
        handle, config.socket, compression=None, max_size=MAX_MESSAGE_BYTES, ping_interval=None, server_header=None
    )
    Path(config.socket).chmod(0o600)
    _log.info("serving %s at %s", config.key, config.socket)
    try:
        ends = [asyncio.create_task(event.wait()) for event in (stop, device.lost)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        error: HarmoniaError = UnavailableError("the worker is shutting down; retry on another or later")
        if device.lost.is_set():
            error = WorkerLostError("the device process ended; retry on another worker")
        server.close(close_connections=False)
        service.streams.fail_all(error)
        await _farewell(connections)
    finally:
        server.close()
        Path(config.socket).unlink(missing_ok=True)
    with suppress(TimeoutError):
        await asyncio.wait_for(server.wait_closed(), _FAREWELL_S)
    return EXIT_LOST if device.lost.is_set() else 0


async def _farewell(connections: set[Connection]) -> None:
    """Give the last messages a moment to leave."""
    waiting = [asyncio.create_task(connection.drained()) for connection in connections]
    if waiting:
        await asyncio.wait(waiting, timeout=_FAREWELL_S)
