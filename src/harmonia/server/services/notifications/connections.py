"""What integrations need to reach their services, checked, and with what is secret hidden."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from harmonia.errors import InvalidRequestError
from harmonia.server.services.keys import checked_email
from harmonia.server.services.outbound import checked_url

Connection = dict[str, Any]

SIGNING_HEADER = "X-Harmonia-Secret"
"""Among the headers of a webhook, the key of its signatures. It is never sent."""
HIDDEN = "****"
_SHOWN = 4
_METHODS = ("POST", "PUT", "PATCH")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "upgrade", "te"})

PROVIDERS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "slack": ("A channel of Slack", ("NOTIFICATION_CHANNEL",), ("USER", "TEAM", "ORGANIZATION", "ADMIN")),
    "smtp": ("E-mail", ("NOTIFICATION_CHANNEL",), ("USER", "TEAM", "ORGANIZATION", "ADMIN")),
    "webhook": ("An address that takes JSON", ("NOTIFICATION_CHANNEL",), ("USER", "TEAM", "ORGANIZATION", "ADMIN")),
    "github": ("Repositories at GitHub", ("CODE_SOURCE",), ()),
}
"""By name: what it is, what it can do, and the scopes of events that it can be told of."""


def checked_connection(provider: str, given: Mapping[str, Connection], before: Connection | None) -> Connection:
    """The connection of a provider. given: by provider, exactly that one. before: what was kept; a hidden secret means
    that it stays.
    """
    if list(given) != [provider]:
        got = ", ".join(given) or "nothing"
        raise InvalidRequestError(f"connection: give {provider!r} and nothing else, got {got}", field="connection")
    return _CHECKS[provider](given[provider], before or {})


def shown_connection(provider: str, connection: Connection, *, is_new: bool = False) -> Connection:
    """The same for people. is_new: with the key of the signatures, which is shown this once."""
    shown = dict(connection)
    for name in ("bot_token", "api_token"):
        if shown.get(name):
            shown[name] = hidden(shown[name])
    if provider == "slack":
        shown["webhook_url"] = _hidden_url(shown["webhook_url"])
    if provider == "smtp":
        shown["password"] = None
    if provider == "webhook":
        key = shown.pop("secret")
        shown["headers"] = {name: hidden(value) for name, value in shown["headers"].items()}
        shown["headers"][SIGNING_HEADER] = key if is_new else hidden(key)
    return shown


def hidden(secret: str) -> str:
    """Its first letters, if the rest is long enough to stay secret."""
    return (secret[:_SHOWN] if len(secret) >= 4 * _SHOWN else "") + HIDDEN


def _hidden_url(url: str) -> str:
    return f"{url.rpartition('/')[0]}/{HIDDEN}"


def _kept(given: str | None, before: str | None, shown: str | None = None) -> str | None:
    """What was kept if what was given is only how that is shown."""
    if given is not None and before is not None and given == (shown or hidden(before)):
        return before
    return given


def _require_same_place(field: str, now: str, before: str) -> None:
    """Whoever may change a connection may not read its secrets, not by having them sent elsewhere either."""
    if now != before:
        raise InvalidRequestError(
            f"{field}: what is hidden stays with {before}; give it anew for {now}, or leave it out", field=field
        )


def _origin(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0].partition('?')[0]}"


def _slack(given: Connection, before: Connection) -> Connection:
    url = given["webhook_url"]
    if before:
        url = _kept(url, before["webhook_url"], _hidden_url(before["webhook_url"]))
    url = checked_url(url, "webhookUrl")
    return {"webhook_url": url, "bot_token": _kept(given.get("bot_token"), before.get("bot_token"))}


def _smtp(given: Connection, before: Connection) -> Connection:
    host, port = given["host"].strip(), given["port"]
    if not re.fullmatch(r"[A-Za-z0-9.:_-]+", host):
        raise InvalidRequestError(f"host: {host!r} is no host", field="host")
    if not 1 <= port <= 65535:
        raise InvalidRequestError(f"port: 1 to 65535, got {port}", field="port")
    if not given["to_emails"]:
        raise InvalidRequestError("toEmails: give at least one address", field="toEmails")
    password = given["password"]
    if password == HIDDEN and before:
        _require_same_place("password", f"{host}:{port}", f"{before['host']}:{before['port']}")
        password = before.get("password")
    return {
        "host": host,
        "port": port,
        "username": given["username"],
        "password": password,
        "from_email": checked_email(given["from_email"], "fromEmail"),
        "to_emails": [checked_email(address, "toEmails") for address in given["to_emails"]],
    }


def _webhook(given: Connection, before: Connection) -> Connection:
    method = given["method"].upper()
    if method not in _METHODS:
        raise InvalidRequestError(f"method: one of {', '.join(_METHODS)}, got {given['method']!r}", field="method")
    headers, old = _checked_headers(given["headers"]), before.get("headers", {})
    key = next((headers.pop(name) for name in list(headers) if name.lower() == SIGNING_HEADER.lower()), None)
    url = checked_url(given["url"])
    kept = {name: _kept(value, old.get(name)) for name, value in headers.items()}
    if kept != headers:
        _require_same_place("headers", _origin(url), _origin(before["url"]))
    return {
        "url": url,
        "method": method,
        "headers": kept,
        "secret": _kept(key, before.get("secret")) or before.get("secret") or secrets.token_urlsafe(32),
    }


def _checked_headers(headers: object) -> dict[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, dict):
        raise InvalidRequestError(f"headers: an object of names and texts, got {headers!r}", field="headers")
    for name, value in headers.items():
        if not _HEADER.fullmatch(name) or name.lower() in _OURS:
            raise InvalidRequestError(f"headers: {name!r} is no header that can be set; leave it out", field="headers")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise InvalidRequestError(f"headers: the value of {name!r} must be one line of ASCII", field="headers")
    return dict(headers)


def _github(given: Connection, before: Connection) -> Connection:
    token = _kept(given["api_token"], before.get("api_token"))
    if not token:
        raise InvalidRequestError("apiToken: give a token of GitHub", field="apiToken")
    return {"api_token": token, "org": given.get("org"), "repo": given.get("repo")}


_CHECKS: dict[str, Callable[[Connection, Connection], Connection]] = {
    "slack": _slack,
    "smtp": _smtp,
    "webhook": _webhook,
    "github": _github,
}
