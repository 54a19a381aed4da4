"""Passwords and tokens of services outside, encrypted before they are kept."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from harmonia.config.control import ControlConfig
from harmonia.errors import HarmoniaError

SECRET_FILE = "app.secret"
_PURPOSE = b"harmonia: secrets at rest"


class Secrets:
    """Seals texts with a key that is derived from the application's secret; see `application_secret`."""

    def __init__(self, config: ControlConfig) -> None:
        derived = HKDF(SHA256(), 32, salt=None, info=_PURPOSE).derive(application_secret(config).encode())
        self._box = Fernet(base64.urlsafe_b64encode(derived))

    def seal(self, text: str) -> str:
        """What may be kept."""
        return self._box.encrypt(text.encode()).decode("ascii")

    def open(self, sealed: str) -> str:
        """The text again. HarmoniaError if it was sealed with another secret or changed since."""
        try:
            return self._box.decrypt(sealed.encode("ascii")).decode()
        except InvalidToken as error:
            raise HarmoniaError(
                "a stored password or token cannot be read with this server's secret; restore ADAPTIVE_APP__SECRET or "
                f"the file {SECRET_FILE!r} of the data folder, or enter it anew"
            ) from error


def application_secret(config: ControlConfig) -> str:
    """`ADAPTIVE_APP__SECRET`, or what the file in the data folder holds; made there if there is none."""
    if config.app.secret is not None:
        return config.app.secret.get_secret_value()
    path = config.folder / SECRET_FILE
    if not path.exists():
        _make(path)
    return path.read_text(encoding="ascii")


def _make(path: Path) -> None:
    """Written aside and then linked, so that of several processes that start at once all read the same whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(64))
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()
