"""What all resources share."""

from __future__ import annotations

from harmonia.sdk.aio.transport import AsyncTransport


class AsyncResource:
    """A part of the server's interface."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def _project(self, project: str | None) -> str:
        return self._transport.project(project)
