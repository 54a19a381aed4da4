"""Asking addresses that users chose, without letting them reach what only this server can reach."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from harmonia.errors import InvalidRequestError

_PORTS = {"http": 80, "https": 443}
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class OutboundError(Exception):
    """The other side did not answer as it should. is_passing: whether asking again makes sense. status: of an HTTP
    answer that was an error."""

    def __init__(self, message: str, *, is_passing: bool, status: int | None = None) -> None:
        super().__init__(message)
        self.is_passing, self.status = is_passing, status


class ForbiddenAddressError(OutboundError):
    """The address belongs to a network that users may not reach through this server."""

    def __init__(self, host: str, address: Address, setting: str) -> None:
        super().__init__(
            f"{host!r} is at {address}, an address that is not public; an operator can permit such addresses with "
            f"{setting}=true",
            is_passing=False,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; status below 400."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; OutboundError if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise OutboundError(f"the answer is not JSON: {self.body[:80]!r}", is_passing=False) from error


class Outbound:
    """HTTP to public addresses, or to any with `allow_private`; redirects and proxies are not followed.

    setting: the variable that permits private addresses, for messages. seconds: for a whole exchange. max_bytes: of an
    answer.
    """

    def __init__(self, *, allow_private: bool, setting: str, seconds: float, max_bytes: int = 16 * 1024 * 1024) -> None:
        self._guard = AddressGuard(allow_private=allow_private, setting=setting)
        self._seconds, self._max_bytes = seconds, max_bytes
        self._client = httpx.AsyncClient(
            transport=PinnedTransport(self._guard), trust_env=False, follow_redirects=False, timeout=seconds
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def ask(
        self, method: str, url: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One exchange; OutboundError unless it succeeds."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._exchange(method, url, content, headers)
        except TimeoutError as error:
            raise OutboundError(f"{url} did not answer within {self._seconds:g} s", is_passing=True) from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise OutboundError(f"{url} cannot be reached: {reason}", is_passing=True) from error

    async def _exchange(
        self, method: str, url: str, content: bytes | None, headers: Mapping[str, str] | None
    ) -> Answer:
        async with self._client.stream(method, url, content=content, headers=headers) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > self._max_bytes:
                    raise OutboundError(f"{url} answered with more than {self._max_bytes} bytes", is_passing=False)
        if response.is_redirect:
            raise OutboundError(
                f"{url} redirects to {response.headers.get('location')!r}; give the final address", is_passing=False
            )
        if response.is_error:
            text = bytes(body[:200]).decode(errors="replace")
            is_passing = response.status_code in _RETRIED
            raise OutboundError(
                f"{url} answered {response.status_code}: {text}", is_passing=is_passing, status=response.status_code
            )
        return Answer(response.status_code, bytes(body))


class AddressGuard:
    """Finds the address of a host, and refuses those that are not public."""

    def __init__(self, *, allow_private: bool, setting: str) -> None:
        self._allow_private, self._setting = allow_private, setting

    async def resolve(self, host: str, port: int) -> str:
        """An address that may be connected to; one refused address of the host is enough to refuse it."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise OutboundError(f"the host {host!r} is not known: {error}", is_passing=True) from error
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        for address in addresses:
            if not self._allow_private and not _is_public(address):
                raise ForbiddenAddressError(host, address, self._setting)
        return str(addresses[0])


def _is_public(address: Address) -> bool:
    """Not private, loopback, link-local, shared, multicast or reserved; nor any of these inside an IPv6 address."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is not None:
            return _is_public(inner)
        if address in _NAT64:
            return _is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address.is_global and not address.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class PinnedTransport(httpx.AsyncBaseTransport):
    """Connects to the address that was checked, so that a name cannot mean another one a moment later.

    The name stays in the `Host` header, which is set already, and in TLS, where certificates are checked against it.
    """

    def __init__(self, guard: AddressGuard) -> None:
        self._guard = guard
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host, port = request.url.host, request.url.port or _PORTS[request.url.scheme]
        request.extensions = {**request.extensions, "sni_hostname": host}
        request.url = request.url.copy_with(host=await self._guard.resolve(host, port))
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def checked_url(text: str, field: str = "url") -> str:
    """An HTTP address without a user, a query or a fragment, and without a slash at its end."""
    try:
        url = httpx.URL(text.strip())
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidRequestError(f"{field}: {text!r} is no address: {error}", field=field) from error
    if url.scheme not in _PORTS or not url.host:
        raise InvalidRequestError(f"{field}: {text!r} does not begin with http:// or https:// and a host", field=field)
    if url.userinfo:
        raise InvalidRequestError(f"{field}: leave user and password out of the address", field=field)
    if url.fragment:
        raise InvalidRequestError(f"{field}: leave out what follows '#'", field=field)
    return str(url).rstrip("/")
