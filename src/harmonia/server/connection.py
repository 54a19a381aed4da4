"""A connection with limits: it sends a whole request in time, its head is short, and there are not too many of it."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from harmonia.errors import HarmoniaError, InvalidRequestError, UnavailableError
from harmonia.server.rest.errors import body_of

MAX_HEAD_BYTES = 65_536
"""Request line and headers; the parser would collect them without end."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection that does not send a whole request in time, and refuses those above the limit."""

    header_timeout_s: ClassVar[float] = 20.0
    max_connections: ClassVar[int] = 16_384

    _timer: asyncio.TimerHandle | None = None
    _head_bytes: int | None = None
    """Of the head that is being read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a connection, or turn it away."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            error = UnavailableError(f"{self.max_connections} connections are open already")
            transport.write(_refusal(b"503 Service Unavailable\r\nretry-after: 1", error))
            transport.close()
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless a head does not end."""
        super().data_received(data)
        if self._head_bytes is None or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            error = InvalidRequestError(f"the headers exceed {MAX_HEAD_BYTES} bytes; send fewer or shorter ones")
            self.transport.write(_refusal(b"431 Request Header Fields Too Large", error))
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head_bytes = 0
        self._start_timer()

    def on_headers_complete(self) -> None:
        """Its body follows."""
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is here as a whole."""
        self._stop_timer()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Another protocol takes over, with a timer of its own."""
        self._stop_timer()
        super().handle_websocket_upgrade()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


def bounded(header_timeout_s: float, max_connections: int) -> type[BoundedProtocol]:
    """The protocol with these limits; uvicorn makes the instances, so the class carries them."""
    return type(
        "Connection", (BoundedProtocol,), {"header_timeout_s": header_timeout_s, "max_connections": max_connections}
    )


def _refusal(status: bytes, error: HarmoniaError) -> bytes:
    body = body_of(error)
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\n" % status
    return head + b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
