"""What all messages share."""

from __future__ import annotations

from typing import Any

import msgspec

JsonObject = dict[str, Any]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Base of every struct on the wire; the name of its class is its tag."""
