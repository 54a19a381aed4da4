"""Interactions on their way into the database.

Whoever answers a request must not wait for the disk: interactions are put in a line, and written many at a time. The
line is short in memory; when it is full, `record` waits for room. A database that fails is asked again; what it refuses
for good, such as an interaction of a project that was deleted meanwhile, is logged and counted. The journal holds what
is in the line, so that it is written by the next server should this one be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import select
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from harmonia.errors import InvalidRequestError, UnavailableError
from harmonia.log import get_logger
from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion, CompletionLabel
from harmonia.server.db.metrics import DirectScore
from harmonia.server.services.interactions.interaction import Interaction, rows_of
from harmonia.server.services.interactions.journal import Journal
from harmonia.server.services.interactions.system_metrics import SystemMetrics

log = get_logger(__name__)

Measured = Callable[[Mapping[tuple[uuid.UUID, uuid.UUID], int]], Awaitable[None]]
"""Takes numbers of scores, by A/B test and metric."""
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


class InteractionWriter(Collector):
    """Writes interactions in the background. Made inside the event loop that uses it; also tells its own metrics."""

    def __init__(
        self,
        database: Database,
        journal: Journal | None = None,
        max_pending_characters: int = MAX_PENDING_CHARACTERS,
        measured: Measured | None = None,
    ) -> None:
        """journal: None: what is in the line goes with the process. measured: told of what A/B tests measure by."""
        self._measured = measured
        self._database = database
        self._journal = journal
        self._system_metrics = SystemMetrics(database)
        self._limit = max_pending_characters
        self._line: dict[uuid.UUID, Interaction] = {}
        self._doubtful: set[uuid.UUID] = set()
        """Those of the line that the database may have already."""
        self._characters = 0
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.written = 0
        self.refused = 0
        self.waits = 0
        self.retries = 0

    def start(self) -> None:
        """Begin to write, what earlier servers left first, and to tell `/metrics` of it."""
        if self._journal is not None:
            left = self._journal.open()
            if left:
                log.warning("%d interactions of a server that did not end in order are written now", len(left))
            self._line = {item.id: item for item in left}
            self._characters = sum(map(_weight, left))
            self._doubtful = set(self._line)
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
            if self._journal is not None:
                self._journal.record(item)
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
        """Write what is in the line; the journal keeps what a failing database does not take in `CLOSE_S` seconds."""
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
            fate = "are lost" if self._journal is None else "are left to the next start"
            log.error("%d interactions %s: the database failed until the end", len(self._line), fate)
        else:
            self._task.result()
        if self._journal is not None:
            self._journal.close()

    def collect(self) -> Iterable[Metric]:
        """For `/metrics`."""
        yield GaugeMetricFamily("harmonia_interactions_pending", "Interactions not yet written", len(self._line))
        yield CounterMetricFamily("harmonia_interactions_written", "Interactions written", self.written)
        yield CounterMetricFamily("harmonia_interactions_refused", "Interactions the database refused", self.refused)
        yield CounterMetricFamily("harmonia_interactions_waits", "Requests that waited for a full line", self.waits)
        yield CounterMetricFamily("harmonia_interactions_retries", "Writes that failed and were repeated", self.retries)
        if self._journal is not None:
            yield CounterMetricFamily(
                "harmonia_interactions_unjournaled", "Writes of the journal that failed", self._journal.failures
            )

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
            if self._journal is not None:
                self._journal.settle([item.id for item in batch])
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
                measured = await self._insert(batch)
            except (SQLAlchemyError, UnavailableError, OSError, TypeError, ValueError) as error:
                if _is_refusal(error):
                    await self._narrow(batch, error)
                    return
                self.retries += 1
                self._doubtful |= {item.id for item in batch}  # it may have failed after it was done
                reason = str(error).partition("\n")[0]  # what follows are texts of people
                log.error("%d interactions could not be written (%s); again in %g s", len(batch), reason, delay_s)
            else:
                self.written += len(batch)
                await self._tell(measured)
                return
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

    async def _tell(self, measured: Counter[tuple[uuid.UUID, uuid.UUID]]) -> None:
        """What comes of it must not keep interactions from being written; the next ones make up for what is missed."""
        if self._measured is None or not measured:
            return
        try:
            await self._measured(measured)
        except Exception:
            log.exception("A/B tests were not told of %d scores", measured.total())

    async def _insert(self, batch: list[Interaction]) -> Counter[tuple[uuid.UUID, uuid.UUID]]:
        """How many scores of this server's own came, by A/B test and metric."""
        doubtful = self._doubtful.intersection(item.id for item in batch)
        known = await self._known(doubtful) if doubtful else set()
        batch = [item for item in batch if item.id not in known]
        rows, labels = [], []
        for item in batch:
            row, label_rows = rows_of(item)
            rows.append(row)
            labels += label_rows
        scores = await self._system_metrics.scores(batch)
        await self._database.insert({Completion: rows, CompletionLabel: labels, DirectScore: scores})
        self._doubtful -= doubtful
        tests = {item.id: item.ab_campaign_id for item in batch if item.ab_campaign_id is not None}
        return Counter(
            (tests[row["completion_id"]], row["metric_id"]) for row in scores if row["completion_id"] in tests
        )

    async def _known(self, ids: set[uuid.UUID]) -> set[uuid.UUID]:
        """Which of them the database has; nobody else writes them, since it has one server."""
        async with self._database.read() as session:
            return set((await session.execute(select(Completion.id).where(Completion.id.in_(ids)))).scalars())


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
