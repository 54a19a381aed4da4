"""Keeps a connection to every ready worker and maps model keys to workers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection

import msgspec

from harmonia import tracing
from harmonia.errors import (
    DeadlineExceededError,
    HarmoniaError,
    InvalidRequestError,
    UnavailableError,
    UnknownModelError,
    WorkerLostError,
)
from harmonia.log import get_logger
from harmonia.protocol.client import Stream, WorkerClient
from harmonia.protocol.fleet import Fleet, WorkerState, WorkerStatus
from harmonia.protocol.messages import (
    PROTOCOL_VERSION,
    CloseSession,
    Describe,
    Description,
    Done,
    Embed,
    Embedded,
    Generate,
    GetStats,
    LoadAdapter,
    ModelInfo,
    Stats,
    UnloadAdapter,
)
from harmonia.router.stickiness import Stickiness

log = get_logger(__name__)

LOADING_RETRY_S = 2
CROWDED_FACTOR, CROWDED_FROM = 2, 8
"""A session leaves the replica that has its cache when that one has so many times the requests of the least loaded, and
so many more: then computing the conversation again costs less than waiting."""
_RECONNECT_S = 0.2
_WATCH_S = 600.0


class Replica:
    """A worker that is connected and described."""

    def __init__(self, replica: str, client: WorkerClient, description: Description) -> None:
        self.replica = replica
        self.client = client
        self.leaving: frozenset[str] = frozenset()
        """Adapters that it is about to lose: whoever else has them takes their requests."""
        self.describe(description)

    @property
    def num_streams(self) -> int:
        """Answers that it writes now."""
        return self.client.num_streams

    def describe(self, description: Description) -> None:
        """Take in what the worker says about itself."""
        self.description = description
        self.keys = frozenset(model.key for model in description.models)
        self.backbone = next((model.key for model in description.models if model.parent is None), "")


class Router:
    """Follows a fleet and sends each request to one of its workers."""

    def __init__(self, fleet: Fleet, timeout_s: float = 60.0) -> None:
        self._fleet = fleet
        self._timeout_s = timeout_s
        self._replicas: dict[str, Replica] = {}
        self._links: dict[str, asyncio.Task[None]] = {}
        self._adapters: dict[tuple[str, str], str] = {}
        self._retired: set[str] = set()
        self._sticky = Stickiness()
        self._follower: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Begin to follow the fleet."""
        self._follower = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Close every connection."""
        tasks = [*self._links.values(), *([self._follower] if self._follower else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self, error: HarmoniaError) -> None:
        """End every open request with this error."""
        for replica in self._replicas.values():
            replica.client.abort(error)

    @property
    def ready(self) -> bool:
        """Whether every worker of the fleet takes requests."""
        statuses = self._fleet.statuses()
        return bool(statuses) and all(status.replica in self._replicas for status in statuses)

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """The state of every worker."""
        return self._fleet.statuses()

    async def wait_change(self) -> None:
        """Wait until a worker's state or a connection changes."""
        self._changed.clear()
        await self._changed.wait()

    def models(self) -> tuple[ModelInfo, ...]:
        """Every model that some ready worker serves."""
        found: dict[str, ModelInfo] = {}
        for replica in self._replicas.values():
            for model in replica.description.models:
                found.setdefault(model.key, model)
        return tuple(found.values())

    def pick(self, model: str, session_id: str | None = None, avoid: Collection[str] = ()) -> Replica:
        """The replica for a request, none of `avoid`: the one that knows its session, or the least loaded where none
        does or that one is crowded."""
        with tracing.span("choose worker") as span:
            candidates = [item for item in self._taking() if model in item.keys and item.replica not in avoid]
            if not candidates:
                raise self._absent(model)
            candidates = [item for item in candidates if model not in item.leaving] or candidates
            known = self._sticky.recall(session_id, model) if session_id else None
            chosen = _chosen(candidates, known)
            if session_id:
                self._sticky.remember(session_id, model, chosen.replica)
            span.note({"harmonia.replica": chosen.replica, "harmonia.replicas": len(candidates)})
        return chosen

    def find(self, replica: str) -> Replica | None:
        """A worker by its id; None while it is not connected."""
        return self._replicas.get(replica)

    def serves(self, model: str) -> bool:
        """Whether some worker answers for a model."""
        return any(model in replica.keys for replica in self._taking())

    def retire(self, replica: str) -> None:
        """Send a worker no further requests; those that run may finish."""
        self._retired.add(replica)

    def withdraw(self, adapters: Collection[str], replica: str) -> list[str]:
        """Of adapters that a worker shall lose: those that it may lose now. Where others have one, they take its
        requests from here on, and those that this one has may end."""
        worker = self._replicas[replica]
        worker.leaving = frozenset(adapters)
        others = [item for item in self._taking() if item is not worker]
        moved = {key for item in others for key in item.keys - item.leaving}
        return [key for key in adapters if key not in moved or not worker.client.is_busy_with(key)]

    def generate(self, replica: Replica, *requests: Generate) -> Stream:
        """Send requests to a replica; the stream holds the events of all."""
        if trace := tracing.traceparent():
            requests = tuple(msgspec.structs.replace(request, trace=trace) for request in requests)
        return replica.client.generate(*requests)

    async def embed(self, replica: Replica, request: Embed, timeout_s: float) -> Embedded:
        """Ask a replica for embeddings."""
        if trace := tracing.traceparent():
            request = msgspec.structs.replace(request, trace=trace)
        return await replica.client.request(request, Embedded, timeout_s)

    async def stats(self) -> list[tuple[Replica, Stats]]:
        """Statistics of every worker that answers."""
        replicas = list(self._replicas.values())
        answers = await asyncio.gather(
            *(replica.client.request(GetStats(id=_new_id()), Stats, self._timeout_s) for replica in replicas),
            return_exceptions=True,
        )
        pairs = zip(replicas, answers, strict=True)
        return [(replica, answer) for replica, answer in pairs if isinstance(answer, Stats)]

    async def close_session(self, session_id: str) -> None:
        """Forget a session everywhere."""
        self._sticky.forget(session_id)
        message = CloseSession(id=_new_id(), session_id=session_id)
        for replica in list(self._replicas.values()):
            await replica.client.request(message, Done, self._timeout_s)

    async def load_adapter(
        self, key: str, path: str, backbone: str | None = None, only: str | None = None
    ) -> ModelInfo:
        """Load a PEFT folder under a key on every replica of a backbone, or on one of them."""
        backbone = backbone or self._only_backbone()
        replicas = [item for item in self._replicas_of(backbone) if only in (None, item.replica)]
        if any(key in item.keys for item in (self._taking() if only is None else replicas)):
            raise InvalidRequestError(f"a model named {key!r} is loaded already; unload it first", field="key")
        for replica in replicas:
            await replica.client.request(LoadAdapter(id=_new_id(), key=key, path=path), Done, self._timeout_s)
            await self._refresh(replica)
        loaded = next((model for replica in replicas for model in replica.description.models if model.key == key), None)
        if loaded is None:
            raise WorkerLostError(f"the worker that was to load {key!r} is gone; ask again when it is back")
        # A restarted worker begins without it.
        self._adapters[backbone, key] = path
        return loaded

    async def unload_adapter(self, key: str, only: str | None = None) -> None:
        """Free an adapter's slot on every replica, or on one of them."""
        if all(model.key != key or model.parent is None for model in self.models()):
            names = ", ".join(model.key for model in self.models() if model.parent is not None) or "none"
            raise UnknownModelError(f"no adapter is named {key!r}; loaded: {names}", field="key")
        for replica in [item for item in self._taking() if key in item.keys and only in (None, item.replica)]:
            self._adapters.pop((replica.backbone, key), None)
            await replica.client.request(UnloadAdapter(id=_new_id(), key=key), Done, self._timeout_s)
            await self._refresh(replica)

    def _taking(self) -> list[Replica]:
        return [replica for replica in self._replicas.values() if replica.replica not in self._retired]

    def _absent(self, model: str) -> HarmoniaError:
        waiting = [status for status in self._fleet.statuses() if status.replica not in self._replicas]
        for status in waiting:
            if status.failure is not None:
                return UnavailableError(f"model {status.key!r} could not be loaded: {status.failure.message}")
        if waiting:
            message = f"model {waiting[0].key!r} is still loading; /health says when it is ready"
            return UnavailableError(message, retry_after_s=LOADING_RETRY_S)
        names = ", ".join(info.key for info in self.models()) or "none"
        return UnknownModelError(f"no model is named {model!r}; this server has: {names}", field="model")

    def _only_backbone(self) -> str:
        backbones = {replica.backbone for replica in self._replicas.values()}
        if not backbones:
            raise self._absent("")
        if len(backbones) > 1:
            names = ", ".join(sorted(backbones))
            raise InvalidRequestError(f"name the backbone of the adapter in 'model': {names}", field="model")
        return backbones.pop()

    def _replicas_of(self, backbone: str) -> list[Replica]:
        replicas = [replica for replica in self._taking() if replica.backbone == backbone]
        if not replicas:
            raise self._absent(backbone)
        return replicas

    async def _refresh(self, replica: Replica) -> None:
        replica.describe(await replica.client.request(Describe(id=_new_id()), Description, self._timeout_s))

    async def _follow(self) -> None:
        async for status in self._fleet.watch():
            if status.state is WorkerState.READY and status.replica not in self._links:
                self._links[status.replica] = asyncio.create_task(self._link(status))
            elif status.state is not WorkerState.READY and status.replica in self._links:
                self._links.pop(status.replica).cancel()
                if status.state is WorkerState.STOPPED:
                    self._retired.discard(status.replica)
            self._changed.set()

    async def _link(self, status: WorkerStatus) -> None:
        """Stay connected to a worker for as long as its fleet calls it ready."""
        while True:
            try:
                client = await WorkerClient.connect(status.socket, self._timeout_s)
                await self._serve(status, client)
            except HarmoniaError as error:
                log.error("worker %s: %s", status.replica, error)
            await asyncio.sleep(_RECONNECT_S)

    async def _serve(self, status: WorkerStatus, client: WorkerClient) -> None:
        try:
            description = await client.request(Describe(id=_new_id()), Description, self._timeout_s)
            if description.protocol_version != PROTOCOL_VERSION:
                raise WorkerLostError(
                    f"the worker speaks protocol {description.protocol_version}, this server {PROTOCOL_VERSION}"
                )
            replica = Replica(status.replica, client, description)
            await self._restore_adapters(replica)
            self._replicas[status.replica] = replica
            self._changed.set()
            watching = asyncio.create_task(self._watch(replica))
            try:
                await client.closed.wait()
            finally:
                watching.cancel()
        finally:
            self._replicas.pop(status.replica, None)
            self._changed.set()
            await client.close()

    async def _watch(self, replica: Replica) -> None:
        """Keep up with what a worker serves: protocol clients spawn models there, and train them."""
        while replica.description.revision:
            message = Describe(id=_new_id(), unlike=replica.description.revision)
            try:
                replica.describe(await replica.client.request(message, Description, _WATCH_S))
            except DeadlineExceededError:
                continue  # nothing changed
            except HarmoniaError as error:
                log.debug("worker %s: %s", replica.replica, error)
                return
            self._changed.set()

    async def _restore_adapters(self, replica: Replica) -> None:
        for (backbone, key), path in self._adapters.items():
            if backbone == replica.backbone and key not in replica.keys:
                message = LoadAdapter(id=_new_id(), key=key, path=path)
                try:
                    await replica.client.request(message, Done, self._timeout_s)
                except InvalidRequestError as error:
                    log.error("adapter %s is not back after the restart: %s", key, error)
        await self._refresh(replica)


def _chosen(candidates: list[Replica], known: str | None) -> Replica:
    least = min(candidates, key=lambda replica: replica.client.num_open)
    kept = next((replica for replica in candidates if replica.replica == known), least)
    is_crowded = kept.client.num_open > CROWDED_FACTOR * least.client.num_open + CROWDED_FROM
    return least if is_crowded else kept


def _new_id() -> str:
    return uuid.uuid4().hex
