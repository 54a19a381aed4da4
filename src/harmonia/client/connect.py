"""Connecting to a worker."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import urlsplit

from harmonia.client.builder import BuilderArgs, ModelBuilder
from harmonia.client.session import Session, SpawnObserver, StepObserver
from harmonia.errors import InvalidRequestError, WorkerLostError
from harmonia.protocol.client import WorkerClient
from harmonia.protocol.instances import SCHEME, DescribeModel, Hello, ModelDescription

_CONNECT_TIMEOUT_S = 10.0


class Lifetime(TypedDict, total=False):
    """Further arguments of `get_client`."""

    ttl_after_disconnect_s: float
    """Seconds for which a lost connection may be resumed and the worker keeps this client's models. 30."""
    name: str | None
    """Shown in the worker's log."""


async def get_client(
    addr: str,
    num_gpus: int | None = None,
    api_key: str | None = None,
    project: str | None = None,
    compute_pool: str | None = None,
    job_id: str | None = None,
    default_headers: Mapping[str, str] | None = None,
    **lifetime: Unpack[Lifetime],
) -> HarmonyClient:
    """Connect to a worker: `ws://host:port`, `wss://...`, or the path of its Unix socket.

    num_gpus, api_key, project, compute_pool and job_id are for a gateway in front of workers and travel as headers,
    beside `default_headers`; where they are None, ADAPTIVE_API_KEY, ADAPTIVE_PROJECT, ADAPTIVE_COMPUTE_POOL and
    ADAPTIVE_JOB_ID count. A worker that one reaches directly ignores them.

    InvalidRequestError for an address that is none, WorkerLostError if nobody answers within 10 s. A client whose event
    loop stands still for more than a minute counts as disconnected: if your own code may block it for longer, let
    `ttl_after_disconnect_s` cover that time.
    """
    _check(addr)
    key = api_key or os.environ.get("ADAPTIVE_API_KEY")
    headers = {
        "Authorization": key and f"Bearer {key}",
        "Adaptive-Project": project or os.environ.get("ADAPTIVE_PROJECT", "default"),
        "Adaptive-Compute-Pool": compute_pool or os.environ.get("ADAPTIVE_COMPUTE_POOL", "default"),
        "Adaptive-Job-Id": job_id or os.environ.get("ADAPTIVE_JOB_ID"),
        "Adaptive-Num-Gpus": None if num_gpus is None else str(num_gpus),
        **(default_headers or {}),
    }
    hello = Hello(
        id="hello",
        client=secrets.token_urlsafe(24),
        name=lifetime.get("name") or "",
        ttl_after_disconnect_s=float(lifetime.get("ttl_after_disconnect_s", 30.0)),
    )
    try:
        link = await WorkerClient.connect(
            addr, _CONNECT_TIMEOUT_S, hello, {name: value for name, value in headers.items() if value}
        )
    except WorkerLostError as error:
        raise WorkerLostError(f"{error.message}; start one with `harmonia worker --port PORT`") from error
    return HarmonyClient(Session(link, asyncio.get_running_loop()))


def _check(addr: str) -> None:
    """InvalidRequestError unless the address could be a worker's."""
    if addr.startswith("/"):
        return
    try:
        parts = urlsplit(addr)
        is_good = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_good = False
    if not is_good:
        raise InvalidRequestError(
            f"{addr!r} is no address of a worker; give ws://host:port, such as ws://127.0.0.1:9100"
        )


def _check_path(path: str) -> None:
    """InvalidRequestError unless the path could be a model's; it may hold a provider's key, which is not repeated."""
    if not path:
        raise InvalidRequestError(f"the path of the model is empty; give {SCHEME}key or a folder", field="path")
    if "://" in path and not path.startswith(SCHEME):
        provider = path.split("://", maxsplit=1)[0]
        raise InvalidRequestError(
            f"models of the provider {provider!r} are not supported; give {SCHEME}key or a folder", field="path"
        )


class HarmonyClient:
    """A connection to a worker, made by `get_client`, and the owner of the models that are spawned through it.

    Closing it frees them. It resumes a connection that breaks; what was not answered yet is sent again and takes effect
    once. Use it in the event loop that made it. As a context manager, with or without `async`, it closes at the end.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._id = secrets.token_hex(8)
        self._closing: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closing else "connected"
        return f"HarmonyClient({state}, models: {', '.join(sorted(self._session.owned)) or 'none'})"

    def model(self, path: str, kv_cache_len: int | None = None, tokens_to_generate: int = 2048) -> ModelBuilder:
        """Describe a model to spawn.

        path: `model_registry://key`, or a folder or file on the worker's machine. A draft that was saved for another
        model is spawned for inference as that model with itself as the draft; what is trained is the draft.
        kv_cache_len: tokens of cache that it must get; None takes what fits. tokens_to_generate: longest answer unless
        `max_gen_len` says otherwise.
        """
        _check_path(path)
        if kv_cache_len is not None and kv_cache_len < 1:
            raise InvalidRequestError(f"kv_cache_len must be at least 1, got {kv_cache_len}", field="kv_cache_len")
        if tokens_to_generate < 1:
            raise InvalidRequestError(
                f"tokens_to_generate must be at least 1, got {tokens_to_generate}", field="tokens_to_generate"
            )
        args = BuilderArgs(path=path, kv_cache_len=kv_cache_len, tokens_to_generate=tokens_to_generate)
        return ModelBuilder(self._session, args)

    async def describe(self, path: str) -> ModelDescription:
        """What the files of a model say, without loading it: its kind, base, longest sequence, and saved defaults.

        UnknownModelError for a path or `model_registry://key` that is not there, with the nearest keys.
        """
        _check_path(path)
        message = DescribeModel(id=self._session.new_id(), path=path)
        return await self._session.ask(message, ModelDescription)

    def observe(self, on_step: StepObserver, on_spawn: SpawnObserver | None = None) -> None:
        """Call `on_step(name, metrics)` after every optimizer step, `on_spawn(name, share)` while a model is made."""
        self._session.observers.append(on_step)
        if on_spawn is not None:
            self._session.spawn_observers.append(on_spawn)

    def session_id(self) -> str:
        """An id of this connection, for logs."""
        return self._id

    def close(self) -> asyncio.Future[None]:
        """Free all models and disconnect. It begins at once; await what it returns to know when it is done."""
        if self._closing is None:
            self._closing = self._begin(self._session.close())
        return self._closing

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        loop = self._session.loop
        if not loop.is_closed():
            return loop.create_task(work)
        work.close()  # the connection ended with its loop
        done = asyncio.Future[None](loop=loop)
        done.set_result(None)
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
