"""`POST /adapters`."""

from __future__ import annotations

from harmonia.server.rest.schemas.fields import Name, RequestModel


class LoadAdapterRequest(RequestModel, kw_only=True):
    """A PEFT folder to load while serving."""

    key: Name
    """Name under which requests address it."""
    path: Name
    """Folder on the server's machine."""
    model: Name | None = None
    """Key of its backbone; needed only when the server has several."""
