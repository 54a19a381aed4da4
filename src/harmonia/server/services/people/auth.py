"""Who may call: today a fixed set of keys, later the database."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from harmonia.errors import AuthenticationError


class KeyRing:
    """The keys that callers may present; an empty ring lets everyone in."""

    def __init__(self, keys: Iterable[str]) -> None:
        # Digests have one length, so that comparing takes the same time for every guess.
        self._digests = tuple(_digest(key) for key in keys)

    def check(self, authorization: str | None) -> None:
        """Raise `AuthenticationError` unless the value of an `Authorization` header holds one of the keys."""
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise AuthenticationError("this server wants an API key: send the header 'Authorization: Bearer KEY'")
        digest = _digest(key.strip())
        # Every key is compared, so that the time tells nothing about which one was close.
        if sum(hmac.compare_digest(digest, known) for known in self._digests) == 0:
            raise AuthenticationError("the API key is not one that this server knows")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
