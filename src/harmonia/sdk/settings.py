"""Where the server is, and who calls: arguments before environment variables before the settings file.

The file is TOML with `base_url`, `api_key` and `default_project`, at `$HARMONIA_CONFIG`, else
`harmonia/config.toml` in `$XDG_CONFIG_HOME`, `~/.config` unless set.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import httpx

from harmonia.errors import AuthenticationError, InvalidRequestError

DEFAULT_BASE_URL = "http://127.0.0.1:9000"
VARIABLES = {
    "base_url": ("ADAPTIVE_BASE_URL", "ADAPTIVE_URL"),
    "api_key": ("ADAPTIVE_API_KEY",),
    "default_project": ("DEFAULT_PROJECT",),
}
"""The environment's name of each setting; the first that is set counts."""


@dataclass(frozen=True)
class Settings:
    """What a client must know; None: not given anywhere."""

    base_url: str | None = None
    """Of the server, with scheme and host and without `/api`."""
    api_key: str | None = None
    """Sent with every request."""
    default_project: str | None = None
    """The project of calls that name none."""

    def over(self, other: Settings) -> Settings:
        """These settings, and the other's where these have none."""
        names = [field.name for field in fields(self)]
        return Settings(**{name: getattr(self, name) or getattr(other, name) for name in names})

    def require_key(self) -> str:
        """The key; AuthenticationError if there is none, or none that could be sent, says where to put one."""
        key = (self.api_key or "").strip()
        if not key:
            raise AuthenticationError(
                "there is no API key: set ADAPTIVE_API_KEY, run `harmonia set-api-key`, or pass api_key="
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise AuthenticationError("the API key holds signs that no key has; was all of it, and it alone, copied?")
        return key

    def require_address(self) -> str:
        """The address without a slash at its end; InvalidRequestError if it is none."""
        address = (self.base_url or DEFAULT_BASE_URL).strip().rstrip("/")
        try:
            url = httpx.URL(address)
        except httpx.InvalidURL:
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidRequestError(
                f"{address!r} is no address of a server; give one such as {DEFAULT_BASE_URL}", field="base_url"
            )
        return address


def settings_path() -> Path:
    """The settings file."""
    own = os.environ.get("HARMONIA_CONFIG")
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(own or f"{folder}/harmonia/config.toml").expanduser()


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """What the environment says."""
    variables = os.environ if environment is None else environment
    found = {
        name: next((variables[variable] for variable in names if variables.get(variable)), None)
        for name, names in VARIABLES.items()
    }
    return Settings(**found)


def from_file(path: Path | None = None) -> Settings:
    """What the file says; nothing if there is none. InvalidRequestError for one that cannot be read."""
    path = path or settings_path()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"cannot read the settings in {path}: {error}") from error
    for name, value in values.items():
        if name not in VARIABLES or not isinstance(value, str):
            raise InvalidRequestError(
                f"{path}: {name!r} is no setting with a text; there are {', '.join(VARIABLES)}", field=name
            )
    return Settings(**values)


def load_settings(given: Settings | None = None) -> Settings:
    """All sources together."""
    return (given or Settings()).over(from_environment()).over(from_file())


def save_settings(settings: Settings, path: Path | None = None) -> Path:
    """Write the file anew, readable by its owner alone, and return its path."""
    path = path or settings_path()
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items() if value]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.writelines(lines)
    fresh.replace(path)
    return path
