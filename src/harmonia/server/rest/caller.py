"""The HTTP client behind a request: how long it may wait, and whether it is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from harmonia.errors import DeadlineExceededError

T = TypeVar("T")


class Caller:
    """Watches one request's connection. Make it after the body has been read; `close` it with the response."""

    def __init__(self, request: Request, timeout_s: float) -> None:
        self._deadline = asyncio.get_running_loop().time() + timeout_s
        self._timeout_s = timeout_s
        self._gone = asyncio.create_task(_wait_disconnect(request))

    async def wait_for(self, work: Coroutine[None, None, T]) -> T:
        """The result of `work`; it is cancelled when the client leaves or the first byte would come too late."""
        task = asyncio.create_task(work)
        try:
            left_s = self._deadline - asyncio.get_running_loop().time()
            await asyncio.wait({task, self._gone}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if self._gone.done():
                raise ClientDisconnect
            raise DeadlineExceededError(
                f"no byte of the response was ready within {self._timeout_s:g} s; stream the answer, ask for fewer "
                "tokens, or raise ADAPTIVE_SERVER__TIMEOUT_SECONDS",
                limit="ADAPTIVE_SERVER__TIMEOUT_SECONDS",
            )
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def when_gone(self, then: Callable[[], None]) -> None:
        """Call `then` as soon as the client has left."""
        self._gone.add_done_callback(lambda task: None if task.cancelled() else then())

    def close(self) -> None:
        """Stop watching."""
        self._gone.cancel()


async def _wait_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
