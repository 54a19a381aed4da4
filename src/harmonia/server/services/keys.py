"""Keys that people type: what they may look like, and how one is made of a name."""

from __future__ import annotations

import re
import unicodedata

from harmonia.errors import InvalidRequestError
from harmonia.server.db.base import MAX_KEY

_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def checked_key(key: str, field: str = "key") -> str:
    """A key as given; `InvalidRequestError` unless it is letters, digits, '.', '_', '-' and '/'."""
    if len(key) > MAX_KEY or not _ALLOWED.fullmatch(key) or key.endswith("/") or "//" in key:
        raise InvalidRequestError(
            f"{key!r} is no key; begin with a letter or digit, go on with letters, digits, '.', '_', '-' and '/', and "
            f"use at most {MAX_KEY} characters",
            field=field,
        )
    return key


def key_from(name: str, field: str = "name") -> str:
    """A key made of a name: `My Team` becomes `my-team`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    key = re.sub(r"[^a-z0-9._/]+", "-", plain).strip("-./")
    if not key:
        raise InvalidRequestError(f"no key can be made of {name!r}; give one", field=field)
    return checked_key(key[:MAX_KEY], field)
