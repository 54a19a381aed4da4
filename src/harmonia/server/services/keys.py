"""Keys that people type: what they may look like, and how one is made of a name."""

from __future__ import annotations

import re
import unicodedata
import uuid

from harmonia.errors import InvalidRequestError
from harmonia.server.db.base import MAX_KEY

_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.-]+@{_LABEL}(?:\.{_LABEL})*")
_MAX_EMAIL = 254


def checked_key(key: str, field: str = "key") -> str:
    """A key as given; `InvalidRequestError` unless it is letters, digits, '.', '_', '-' and '/', and could be no id.

    Whatever is named by id or key is found by either: a key that is somebody else's id would name both.
    """
    if len(key) > MAX_KEY or not _ALLOWED.fullmatch(key) or key.endswith("/") or "//" in key:
        raise InvalidRequestError(
            f"{key!r} is no key; begin with a letter or digit, go on with letters, digits, '.', '_', '-' and '/', and "
            f"use at most {MAX_KEY} characters",
            field=field,
        )
    if _is_id(key):
        raise InvalidRequestError(f"{key!r} would pass for an id; choose another key", field=field)
    return key


def _is_id(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def key_from(name: str, field: str = "name") -> str:
    """A key made of a name: `My Team` becomes `my-team`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    key = re.sub(r"[^a-z0-9._/]+", "-", plain).strip("-./")
    if not key:
        raise InvalidRequestError(f"no key can be made of {name!r}; give one", field=field)
    return checked_key(key[:MAX_KEY], field)


def checked_name(name: str, field: str = "name") -> str:
    """A name without spaces around it; `InvalidRequestError` if it is empty, too long or not one line of text."""
    plain = name.strip()
    if not plain or len(plain) > MAX_KEY or any(unicodedata.category(sign) in ("Cc", "Cs") for sign in plain):
        raise InvalidRequestError(f"{plain[:40]!r} is no name; give one line of 1 to {MAX_KEY} characters", field=field)
    return plain


def checked_email(email: str, field: str = "email") -> str:
    """An e-mail address in small letters; `InvalidRequestError` unless it is one in ASCII.

    Letters that only look like ASCII, or become it in small letters, would let one person pass for another.
    """
    if len(email) > _MAX_EMAIL or not _EMAIL.fullmatch(email):
        raise InvalidRequestError(f"{email[:40]!r} is no e-mail address in ASCII", field=field)
    return email.lower()
