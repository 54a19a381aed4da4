"""The listening side: uvicorn with limits on idle connections and a shutdown that ends streams in order."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from harmonia.config.server import ServerConfig
from harmonia.errors import HarmoniaError, InvalidRequestError, UnavailableError
from harmonia.log import get_logger
from harmonia.protocol.client import MAX_MESSAGE_BYTES
from harmonia.server.connection import bounded

log = get_logger(__name__)

RESERVED_FILES = 256
"""File descriptors kept for everything but HTTP connections."""
BACKLOG = 4096
_FORCE_AFTER_S = 3.0
_FORCE_POLL_S = 0.1
_PING_PATIENCE_S = 60.0
_KEEP_ALIVE_S = 75


class Answers(Protocol):
    """What the application is busy with, as far as ending it goes."""

    def abort(self, error: HarmoniaError) -> None:
        """End every open answer with this error."""


class Listener(uvicorn.Server):
    """Serves an application until a signal; a second signal ends it at once.

    After the first, running streams may finish within the grace period; what is still open then ends with an error
    event.
    """

    def __init__(
        self,
        app: FastAPI,
        config: ServerConfig,
        answers: Answers,
        *,
        websockets: bool = False,
        before_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """websockets: whether to accept them, for the gateway to workers. before_end: what is done after the first
        signal while requests are still answered; a second one interrupts it."""
        server = config.server
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=bounded(server.header_timeout_seconds, _connection_limit(server.max_connections)),
                ws="websockets-sansio" if websockets else "none",
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_ping_timeout=_PING_PATIENCE_S,  # a recipe that computes answers late
                ws_per_message_deflate=False,
                access_log=False,
                log_config=None,  # harmonia.log writes it, in its own format
                log_level="warning",
                backlog=BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=round(server.shutdown_grace_seconds + _FORCE_AFTER_S),
            )
        )
        self._answers = answers
        self._before_end = before_end
        self._listening = asyncio.Event()
        self._grace_s = server.shutdown_grace_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._listening.set()

    async def wait_listening(self) -> None:
        """Returns when requests are answered."""
        await self._listening.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop accepting; at the second signal stop everything."""
        if self.should_exit:
            self.force_exit = True
            self._end_streams()
            return
        self.should_exit = True
        log.info("%s: finishing open requests for at most %g s", signal.Signals(sig).name, self._grace_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let open requests finish, and end them when the grace period is over."""
        if self._before_end is not None:
            await self._unless_forced(self._before_end())
        timer = asyncio.get_running_loop().call_later(self._grace_s, self._end_streams)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
        if self.force_exit:
            # uvicorn leaves it out then, and its task would end with a trace.
            await self.lifespan.shutdown()

    async def _unless_forced(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        while not task.done() and not self.force_exit:
            await asyncio.wait([task], timeout=_FORCE_POLL_S)
        if not task.done():
            task.cancel()
        for failure in await asyncio.gather(task, return_exceptions=True):
            if isinstance(failure, Exception):
                log.error("the end could not be prepared", exc_info=failure)

    def _end_streams(self) -> None:
        self._answers.abort(UnavailableError("the server is shutting down; send the request again elsewhere"))


class InternalListener(uvicorn.Server):
    """Serves operators beside a `Listener`, and ends when `should_exit` is set: signals are the other's."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app, loop="uvloop", ws="none", lifespan="off", access_log=False, log_config=None, log_level="warning"
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def bind(host: str, port: int, remedy: str = "--host and --port") -> socket.socket:
    """A listening socket; raises `InvalidRequestError`, which names the remedy, when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        message = f"cannot listen on {host} port {port}: {error.strerror or error}; choose another with {remedy}"
        raise InvalidRequestError(message, field="port") from error


def _connection_limit(wanted: int) -> int:
    """Raise the limit on open files as far as it goes; the connections that then fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - RESERVED_FILES)
    if limit < wanted:
        log.warning("%d connections at once at most: the limit on open files is %d", limit, hard)
    return limit
