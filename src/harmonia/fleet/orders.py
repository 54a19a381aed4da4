"""What is asked of `harmonia.fleet.hub`, and what it tells, for a server that does not load what it loads."""

from __future__ import annotations

import msgspec

PART = ".part"
"""How names of files end that are not whole yet."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted."""

    hub_id: str
    """`OWNER/NAME`, or `OWNER/NAME/FILE` for one GGUF file of several."""
    folder: str
    """Where it goes."""
    endpoint: str
    """Address of the hub."""
    token: str | None = None
    """Whose access counts; None: anybody's."""
    spare_bytes: int = 0
    """What must stay free on the disk."""


class News(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happened."""

    total_bytes: int | None = None
    """So much will lie in the folder."""
    error: str | None = None
    """Why it will not."""
    is_done: bool = False
    """Everything is there."""
