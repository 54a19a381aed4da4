# Made by scripts/generate of src/harmonia/sdk/aio/resource.py: change that file, then run the script.
"""What all resources share."""

from __future__ import annotations

from harmonia.sdk.sync.transport import Transport


class Resource:
    """A part of the server's interface."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _project(self, project: str | None) -> str:
        return self._transport.project(project)
