"""Opening a connection to a worker: a Unix socket of this machine or `ws://host:port`, and the greeting on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from harmonia.errors import HarmoniaError, InvalidRequestError, PermissionDeniedError, WorkerLostError, from_code
from harmonia.protocol.instances import Hello, Welcome
from harmonia.protocol.messages import PROTOCOL_VERSION, Failed, WorkerMessage, decode_worker_message, encode

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_GREETING_TIMEOUT_S = 10.0
_PING_INTERVAL_S, _PING_TIMEOUT_S = 20.0, 60.0


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker listens, and how to greet it."""

    place: str
    """`ws://host:port`, `wss://...`, or the path of a Unix socket."""
    headers: Mapping[str, str] = {}
    """Of the WebSocket's handshake, for gateways."""
    hello: Hello | None = None
    """Said first on every connection."""


async def dial(address: Address, timeout_s: float) -> tuple[ClientConnection, Welcome | None]:
    """A connection and the answer to the greeting, if there is one; retries until the worker listens or time is up.

    WorkerLostError when nobody answers in time. An address that cannot be read, a refusal and a worker of another
    protocol raise at once.
    """
    deadline, pause_s = asyncio.get_running_loop().time() + timeout_s, _FIRST_PAUSE_S
    while True:
        try:
            return await _try(address)
        except InvalidStatus as error:
            if 400 <= error.response.status_code < 500:
                raise PermissionDeniedError(
                    f"{address.place} refuses WebSockets with HTTP {error.response.status_code}; {_words(error)}"
                ) from error
            reason: Exception = error
        except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as error:
            reason = error
        if asyncio.get_running_loop().time() + pause_s > deadline:
            raise WorkerLostError(f"no worker answers on {address.place}: {reason or 'it is silent'}") from reason
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _Message(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    """What a gateway says."""

    error: _Message


def _words(error: InvalidStatus) -> str:
    try:
        return msgspec.json.decode(error.response.body or b"", type=_Refusal).error.message
    except msgspec.DecodeError:
        return "is it a worker's port?"


async def _try(address: Address) -> tuple[ClientConnection, Welcome | None]:
    connection = await _open(address)
    if address.hello is None:
        return connection, None
    try:
        return connection, await _greet(connection, address.hello)
    except BaseException:
        connection.transport.abort()
        raise


async def _open(address: Address) -> ClientConnection:
    if "://" not in address.place:
        # Compression and keep-alive pings cost time and protect nothing on a socket of this machine.
        return await unix_connect(
            address.place, "ws://worker/", compression=None, max_size=None, ping_interval=None, proxy=None
        )
    return await connect(
        address.place,
        compression=None,
        max_size=None,
        ping_interval=_PING_INTERVAL_S,
        ping_timeout=_PING_TIMEOUT_S,
        proxy=None,
        additional_headers=dict(address.headers),
    )


async def _greet(connection: ClientConnection, hello: Hello) -> Welcome:
    await connection.send(encode(hello))
    answer = read_frame(await asyncio.wait_for(connection.recv(), _GREETING_TIMEOUT_S))
    if isinstance(answer, Failed):
        raise from_code(answer.code, answer.message, answer.details)
    if not isinstance(answer, Welcome):
        raise HarmoniaError(f"the worker answered {type(answer).__name__} where Welcome was due")
    if answer.protocol_version != PROTOCOL_VERSION:
        raise InvalidRequestError(
            f"the worker speaks protocol {answer.protocol_version}, this client {PROTOCOL_VERSION}; "
            "install the same version of harmonia on both sides"
        )
    return answer


def read_frame(frame: bytes | str) -> WorkerMessage:
    """The message in a frame; HarmoniaError if it is none of this protocol."""
    try:
        return decode_worker_message(frame if isinstance(frame, bytes) else frame.encode())
    except msgspec.MsgspecError as error:
        raise HarmoniaError(f"the worker sent a message that is not of this protocol: {error}") from error
