"""Where a worker listens: a Unix socket for processes of this machine, a TCP port for everyone who may reach it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from websockets.asyncio.server import Server, ServerConnection, serve, unix_serve

from harmonia import log
from harmonia.config import WorkerConfig
from harmonia.errors import InvalidRequestError

MAX_MESSAGE_BYTES = 64 << 20
_MAX_SOCKET_PATH = 103
_PING_S = 20.0
_PING_PATIENCE_S = 60.0

_log = log.get_logger(__name__)

Handler = Callable[[ServerConnection], Awaitable[None]]


class Listeners:
    """The sockets of one worker: bound at once, so that a taken port is told before anything is loaded."""

    def __init__(self, config: WorkerConfig) -> None:
        """Errors: InvalidRequestError for addresses that cannot be bound."""
        if not config.socket and config.port is None:
            raise InvalidRequestError("a worker needs a socket or a port to listen on", field="port")
        if len(config.socket.encode()) > _MAX_SOCKET_PATH:
            message = f"socket path is longer than {_MAX_SOCKET_PATH} bytes: {config.socket}"
            raise InvalidRequestError(message, field="socket")
        self._path = config.socket
        self._tcp = None if config.port is None else _bind(config.host, config.port)
        self._servers: list[Server] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        """As people write them: `ws://127.0.0.1:9100`, and the path of the Unix socket."""
        return tuple(filter(None, (_url(self._tcp) if self._tcp is not None else "", self._path)))

    async def start(self, handle: Handler) -> None:
        """Accept connections. Browsers are refused: any page that they show could connect."""
        if self._tcp is not None:
            self._servers.append(
                await serve(
                    handle,
                    sock=self._tcp,
                    origins=[None],
                    compression=None,
                    max_size=MAX_MESSAGE_BYTES,
                    ping_interval=_PING_S,
                    ping_timeout=_PING_PATIENCE_S,
                    server_header=None,
                )
            )
        if self._path:
            # A Unix socket tells by itself when a peer is gone: no pings, so that an idle worker sleeps.
            self._servers.append(
                await unix_serve(
                    handle,
                    self._path,
                    origins=[None],
                    compression=None,
                    max_size=MAX_MESSAGE_BYTES,
                    ping_interval=None,
                    server_header=None,
                )
            )
            Path(self._path).chmod(0o600)

    def stop(self, *, close_connections: bool) -> None:
        """Accept no more."""
        for server in self._servers:
            server.close(close_connections=close_connections)

    async def wait_closed(self) -> None:
        """Until every connection is closed."""
        for server in self._servers:
            await server.wait_closed()

    def close(self) -> None:
        """Close what is open."""
        self.stop(close_connections=True)
        if self._tcp is not None and not self._servers:
            self._tcp.close()  # else its server does
        if self._path:
            Path(self._path).unlink(missing_ok=True)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except (OSError, OverflowError) as error:
        message = f"cannot listen on {host}:{port}: {error}; choose another with --host or --port, 0 takes a free one"
        raise InvalidRequestError(message, field="port") from error
    if not _is_loopback(address[0]):
        _log.warning("listening on %s without passwords: whoever reaches this port may use the worker", address[0])
    return listener


def _is_loopback(address: object) -> bool:
    try:
        return ipaddress.ip_address(str(address)).is_loopback
    except ValueError:
        return False


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"ws://{f'[{host}]' if ':' in host else host}:{port}"
