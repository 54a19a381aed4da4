"""Interactions on their way into the database.

Whoever answers a request must not wait for the disk: interactions are put in a line, and written many at a time. The
line is short in memory; when it is full, `record` waits for room. A database that fails is asked again; what it refuses
for good, such as an interaction of a project that was deleted meanwhile, is logged and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import insert
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from harmonia.errors import InvalidRequestError, UnavailableError
from harmonia.log import get_logger
from harmonia.server.db.base import MAX_KEY, now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.interactions import MAX_VALUE, Completion, CompletionLabel

log = get_logger(__name__)

MAX_PENDING_CHARACTERS = 64 * 2**20
"""Text that may wait to be written; an interaction counts `_OVERHEAD` more."""
_OVERHEAD = 1024
_AT_FAULT = ("22", "23")
"""PostgreSQL's classes of errors that the data are at fault for."""
_GATHER_S = 0.005
_MAX_BATCH = 500
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 5.0
CLOSE_S = 30.0
"""How long `close` keeps asking a database that fails."""
SETTLE_S = 2.0
"""How long a reader waits for what is in the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One answer to one prompt. The caller makes its id, so that the answer can carry it before it is written."""

    project_id: uuid.UUID
    messages: Sequence[Mapping[str, Any]]
    """The chat, each message with `role` and `content` (a text, or parts)."""
    completion: str
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    model_key: str | None = None
    """The key under which the project serves the model."""
    model_service_id: uuid.UUID | None = None
    model_id: uuid.UUID | None = None
    session_id: uuid.UUID = field(default_factory=uuid.uuid4)
    user: str | None = None
    """Whom the caller asked for."""
    labels: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] | None = None
    timings: Mapping[str, Any] | None = None
    """Milliseconds, such as `ttft_ms`."""
    usage: Mapping[str, int] | None = None
    """`prompt_tokens`, `completion_tokens` and `total_tokens`."""
    created_by: uuid.UUID | None = None
    ab_campaign_id: uuid.UUID | None = None
    source: str = "LIVE"
    created_at: int = field(default_factory=now_ms)
    """UTC milliseconds."""


def prompt_hash(messages: Sequence[Mapping[str, Any]]) -> str:
    """Equal for equal roles, texts and images, whatever else the messages hold."""
    plain = [[message.get("role"), text_of(message), _images(message)] for message in messages]
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, without its images."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and "text" in part)


def _images(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return [part for part in parts if not (isinstance(part, Mapping) and "text" in part)]


def checked_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Labels that can be kept; `InvalidRequestError` for longer ones. To be asked before the answer is generated."""
    for key, value in labels.items():
        if not 0 < len(key) <= MAX_KEY or len(value) > MAX_VALUE:
            raise InvalidRequestError(
                f"the label {key[:80]!r}: keys have 1 to {MAX_KEY} characters, values at most {MAX_VALUE}; got "
                f"{len(key)} and {len(value)}",
                field="labels",
            )
    return labels


def rows_of(item: Interaction) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The completion's row and its labels' rows."""
    row = {
        "id": item.id,
        "created_at": item.created_at,
        "project_id": item.project_id,
        "source": item.source,
        "model_key": item.model_key,
        "model_service_id": item.model_service_id,
        "model_id": item.model_id,
        "messages": [dict(message) for message in item.messages],
        "prompt": _storable("\n".join(text_of(message) for message in item.messages)),
        "prompt_hash": prompt_hash(item.messages),
        "completion": _storable(item.completion),
        "session_id": item.session_id,
        "user": item.user,
        "created_by": item.created_by,
        "ab_campaign_id": item.ab_campaign_id,
        "parameters": None if item.parameters is None else dict(item.parameters),
        "timings": None if item.timings is None else dict(item.timings),
        "usage": None if item.usage is None else dict(item.usage),
    }
    labels = [
        {"completion_id": item.id, "key": _storable(key), "value": _storable(value)}
        for key, value in item.labels.items()
    ]
    return row, labels


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL in a text, and no database half a surrogate pair."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class InteractionWriter(Collector):
    """Writes interactions in the background. Made inside the event loop that uses it; also tells its own metrics."""

    def __init__(self, database: Database, max_pending_characters: int = MAX_PENDING_CHARACTERS) -> None:
        self._database = database
        self._limit = max_pending_characters
        self._line: dict[uuid.UUID, Interaction] = {}
        self._characters = 0
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.written = 0
        self.refused = 0
        self.waits = 0
        self.retries = 0

    def start(self) -> None:
        """Begin to write, and to tell `/metrics` of it."""
        self._database.usage.registry.register(self)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(_tell_death)

    async def record(self, item: Interaction) -> uuid.UUID:
        """Put an interaction in the line and return its id; waits only while the line is full."""
        weight = _weight(item)
        async with self._changed:
            if self._line and self._characters + weight > self._limit:
                self._tell_full()
                await self._changed.wait_for(lambda: not self._line or self._characters + weight <= self._limit)
            if item.id in self._line:
                raise InvalidRequestError(f"interaction {item.id} is recorded already", field="id")
            self._line[item.id] = item
            self._characters += weight
            self._changed.notify_all()
        return item.id

    async def settled(self, ids: Collection[uuid.UUID] | None = None) -> None:
        """Wait until these interactions, or all that are in the line now, are written or refused.

        Gives up after `SETTLE_S` seconds: readers of a database that takes nothing more see what it has.
        """
        waited = set(self._line if ids is None else ids)
        if not waited & self._line.keys():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S), self._changed:
                await self._changed.wait_for(lambda: not waited & self._line.keys())

    async def close(self) -> None:
        """Write what is in the line; what a failing database does not take in `CLOSE_S` seconds is logged as lost."""
        self._closing = True
        if self._task is None:
            return
        self._database.usage.registry.unregister(self)
        async with self._changed:
            self._changed.notify_all()
        _, running = await asyncio.wait({self._task}, timeout=CLOSE_S)
        if running:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            log.error("%d interactions are lost: the database failed until the end", len(self._line))
        else:
            self._task.result()

    def collect(self) -> Iterable[Metric]:
        """For `/metrics`."""
        yield GaugeMetricFamily("harmonia_interactions_pending", "Interactions not yet written", len(self._line))
        yield CounterMetricFamily("harmonia_interactions_written", "Interactions written", self.written)
        yield CounterMetricFamily("harmonia_interactions_refused", "Interactions the database refused", self.refused)
        yield CounterMetricFamily("harmonia_interactions_waits", "Requests that waited for a full line", self.waits)
        yield CounterMetricFamily("harmonia_interactions_retries", "Writes that failed and were repeated", self.retries)

    def _tell_full(self) -> None:
        self.waits += 1
        if self.waits.bit_count() == 1:  # the 1st, 2nd, 4th, 8th ...: a full line would fill the log too
            log.warning(
                "%d interactions wait to be written, and requests wait for them (the %d. time); the database is slower "
                "than the traffic",
                len(self._line),
                self.waits,
            )

    # --------------------------------------------------------------------------------------------- in the background

    async def _run(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._line or self._closing)
            if not self._line:
                return
            if len(self._line) < _MAX_BATCH and not self._closing:
                await asyncio.sleep(_GATHER_S)
            batch = [item for item, _ in zip(self._line.values(), range(_MAX_BATCH), strict=False)]
            await self._write(batch)
            async with self._changed:
                for item in batch:
                    del self._line[item.id]
                    self._characters -= _weight(item)
                self._changed.notify_all()

    async def _write(self, batch: list[Interaction]) -> None:
        """Written or refused when it returns."""
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                await self._insert(batch)
                self.written += len(batch)
                return
            except (SQLAlchemyError, UnavailableError, OSError, TypeError, ValueError) as error:
                if _is_refusal(error):
                    await self._narrow(batch, error)
                    return
                self.retries += 1
                reason = str(error).partition("\n")[0]  # what follows are texts of people
                log.error("%d interactions could not be written (%s); again in %g s", len(batch), reason, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LAST_RETRY_S)

    async def _narrow(self, batch: list[Interaction], error: Exception) -> None:
        """Find the interactions that cannot be written, and write the others."""
        if len(batch) == 1:
            self.refused += 1
            reason = str(error).partition("\n")[0]
            log.error("the database refuses interaction %s: %s", batch[0].id, reason)
            return
        middle = len(batch) // 2
        await self._write(batch[:middle])
        await self._write(batch[middle:])

    async def _insert(self, batch: list[Interaction]) -> None:
        rows, labels = [], []
        for item in batch:
            row, label_rows = rows_of(item)
            rows.append(row)
            labels += label_rows
        async with self._database.begin() as session:
            await session.execute(insert(Completion), rows)
            if labels:
                await session.execute(insert(CompletionLabel), labels)


def _tell_death(task: asyncio.Task[None]) -> None:
    """Without this, a mistake of ours would be seen only when the line is full."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.critical("interactions are written no longer", exc_info=error)


def _is_refusal(error: Exception) -> bool:
    """Whether trying again is in vain: the data are at fault, not the database."""
    sqlstate = str(getattr(getattr(error, "orig", None), "sqlstate", ""))
    return isinstance(error, IntegrityError | DataError | TypeError | ValueError) or sqlstate[:2] in _AT_FAULT


def _weight(item: Interaction) -> int:
    messages = sum(len(str(message.get("content"))) for message in item.messages)
    return _OVERHEAD + len(item.completion) + messages
