"""How a message gets to a service outside: webhooks, Slack and mail."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Any

from harmonia.config.control import Notifications
from harmonia.server.services.outbound import AddressGuard, Outbound, OutboundError

SETTING = "ADAPTIVE_NOTIFICATIONS__ALLOW_PRIVATE"
SIGNATURE, TIMESTAMP, EVENT, TOPIC = (
    "x-harmonia-signature",
    "x-harmonia-timestamp",
    "x-harmonia-event",
    "x-harmonia-topic",
)
_IMPLICIT_TLS_PORT = 465
_MAX_ANSWER = 64 * 1024

Message = Mapping[str, Any]
"""`id`, `topic`, `created_at` in UTC milliseconds, `payload`."""


class Channels:
    """Sends messages. Every method raises OutboundError if the message was not taken."""

    def __init__(self, settings: Notifications) -> None:
        self._seconds = settings.seconds
        self._guard = AddressGuard(allow_private=settings.allow_private, setting=SETTING)
        self._outbound = Outbound(
            allow_private=settings.allow_private, setting=SETTING, seconds=settings.seconds, max_bytes=_MAX_ANSWER
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._outbound.close()

    async def send(self, provider: str, connection: Mapping[str, Any], message: Message) -> None:
        """Send by the way of a provider."""
        send = {"webhook": self._webhook, "slack": self._slack, "smtp": self._mail}[provider]
        await send(connection, message)

    async def _webhook(self, connection: Mapping[str, Any], message: Message) -> None:
        """The message as JSON. With a secret, `SIGNATURE` holds `sha256=` and the HMAC of timestamp, '.' and body."""
        body = json.dumps(message, ensure_ascii=False).encode()
        moment = str(int(time.time()))
        headers = {
            **{str(name).lower(): str(value) for name, value in connection["headers"].items()},
            "content-type": "application/json",
            EVENT: str(message["id"]),
            TOPIC: str(message["topic"]),
            TIMESTAMP: moment,
            SIGNATURE: signature(connection["secret"], moment, body),
        }
        await self._outbound.ask(connection["method"], connection["url"], content=body, headers=headers)

    async def _slack(self, connection: Mapping[str, Any], message: Message) -> None:
        body = json.dumps({"text": as_text(message)}, ensure_ascii=False).encode()
        headers = {"content-type": "application/json"}
        await self._outbound.ask("POST", connection["webhook_url"], content=body, headers=headers)

    async def _mail(self, connection: Mapping[str, Any], message: Message) -> None:
        host, port = connection["host"], connection["port"]
        address = await self._guard.resolve(host, port)
        mail = EmailMessage()
        mail["From"], mail["To"] = connection["from_email"], ", ".join(connection["to_emails"])
        mail["Subject"] = f"Harmonia: {message['topic']}"
        mail["X-Harmonia-Event"] = str(message["id"])
        mail.set_content(as_text(message))
        try:
            await asyncio.to_thread(self._deliver, address, connection, mail)
        except smtplib.SMTPResponseException as error:
            # 5xx is the server's last word, except that it did not let us in: passwords are mended.
            is_passing = error.smtp_code < 500 or isinstance(error, smtplib.SMTPAuthenticationError)
            reason = f"{host} answered {error.smtp_code}: {error.smtp_error!r}"
            raise OutboundError(reason, is_passing=is_passing) from error
        except (OSError, smtplib.SMTPException) as error:
            raise OutboundError(f"the mail server {host}:{port} did not take it: {error}", is_passing=True) from error

    def _deliver(self, address: str, connection: Mapping[str, Any], mail: EmailMessage) -> None:
        """To the address that was checked; certificates must be for the name. No password goes in clear."""
        host, port, context = connection["host"], connection["port"], ssl.create_default_context()
        kind = _TlsMail if port == _IMPLICIT_TLS_PORT else _Mail
        with kind(host, address, port, self._seconds, context) as server:
            server.ehlo()
            if port != _IMPLICIT_TLS_PORT and server.has_extn("starttls"):
                server.starttls(context=context)
                server.ehlo()
            elif port != _IMPLICIT_TLS_PORT and connection["password"]:
                raise smtplib.SMTPNotSupportedError("it offers no encryption, and the password is not sent in clear")
            if connection["password"]:
                server.login(connection["username"], connection["password"])
            server.send_message(mail)


class _Mail(smtplib.SMTP):
    """Knows the server by name, and connects to the address that was checked.

    It has so many seconds for everything that is said: smtplib counts them anew with every byte that comes.
    """

    def __init__(self, host: str, address: str, port: int, seconds: float, context: ssl.SSLContext) -> None:
        self._end = threading.Timer(seconds, self._hang_up)
        self._end.daemon = True
        self._is_late = False
        super().__init__(timeout=seconds)
        self._host, self._context = host, context  # certificates are asked for this name
        code, told = self.connect(address, port)
        if code != 220:
            self.close()
            raise smtplib.SMTPConnectError(code, told)

    def getreply(self) -> tuple[int, bytes]:
        """What the server says next. TimeoutError once it has had its time."""
        reply, cause = (-1, b""), None
        try:
            reply = super().getreply()
        except smtplib.SMTPServerDisconnected as error:
            cause = error
        if self._is_late:
            raise TimeoutError(f"it took longer than {self.timeout:g} s") from cause
        if cause is not None:
            raise cause
        return reply

    def close(self) -> None:
        """Let go of the connection."""
        self._end.cancel()
        super().close()

    def _get_socket(self, host: str, port: int, timeout: float) -> Any:
        opened = self._secured(super()._get_socket(host, port, timeout))  # type: ignore[misc]  # smtplib's own hook
        self._end.start()
        return opened

    def _secured(self, plain: socket.socket) -> socket.socket:
        return plain

    def _hang_up(self) -> None:
        """Called in another thread; whoever reads finds the connection closed."""
        self._is_late = True
        if self.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


class _TlsMail(_Mail):
    """The same with encryption from the first byte."""

    def _secured(self, plain: socket.socket) -> socket.socket:
        return self._context.wrap_socket(plain, server_hostname=self._host)


def signature(secret: str, moment: str, body: bytes) -> str:
    """What proves that a message comes from here."""
    return "sha256=" + hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()


def as_text(message: Message) -> str:
    """A message for people."""
    lines = [f"{name}: {_shown(value)}" for name, value in message["payload"].items() if value not in (None, [], {})]
    return "\n".join([str(message["topic"]), *lines])


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 500 else text[:500] + "..."
