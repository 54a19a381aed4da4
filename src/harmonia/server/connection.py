"""A connection with limits: it sends a whole request in time, and there are not too many of it."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from harmonia.errors import UnavailableError
from harmonia.server.rest.errors import body_of


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection that does not send a whole request in time, and refuses those above the limit."""

    header_timeout_s: ClassVar[float] = 20.0
    max_connections: ClassVar[int] = 16_384

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a connection, or turn it away."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(_refusal(self.max_connections))
            transport.close()
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._start_timer()

    def on_message_complete(self) -> None:
        """It is here as a whole."""
        self._stop_timer()
        super().on_message_complete()

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


def _refusal(max_connections: int) -> bytes:
    body = body_of(UnavailableError(f"{max_connections} connections are open already"))
    head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    return head + b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
