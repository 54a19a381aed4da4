"""Ids that sort by time."""

from __future__ import annotations

import secrets
import time
from uuid import UUID


def uuid_v7() -> str:
    """A UUID of version 7 (RFC 9562) in canonical form: milliseconds since 1970, then 74 random bits."""
    version, variant = 0b0111, 0b10
    head = time.time_ns() // 1_000_000 << 16 | version << 12 | secrets.randbits(12)
    tail = variant << 62 | secrets.randbits(62)
    return str(UUID(int=head << 64 | tail))
