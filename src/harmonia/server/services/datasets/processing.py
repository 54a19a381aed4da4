"""Checks and converts data sets, at once or in the background; what a process leaves undone the next one does."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, HarmoniaError
from harmonia.log import get_logger
from harmonia.server.db.base import now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.datasets import Dataset, DatasetMetric
from harmonia.server.db.metrics import Metric
from harmonia.server.services.datasets.reader import DatasetReader
from harmonia.server.services.datasets.uploads import Uploads
from harmonia.server.services.files import Files
from harmonia.server.services.metrics import NewMetric, add_metric

log = get_logger(__name__)

PENDING, PROCESSING, READY, FAILED = "PENDING", "PROCESSING", "READY", "FAILED"

_AT_ONCE = 2  # further ones would only share the processor
_REPORT_S = 1.0
_KEEP_FAILED_MS = 24 * 3_600_000  # for whoever still asks why


class DatasetProcessing:
    """Works on rows of the table of data sets."""

    def __init__(self, database: Database, files: Files, uploads: Uploads) -> None:
        self._database = database
        self._files = files
        self._uploads = uploads
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._tasks: dict[uuid.UUID, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Pick up what is not done, and forget failures of long ago."""
        async with self._database.begin() as session:
            old = Dataset.created_at < now_ms() - _KEEP_FAILED_MS
            await session.execute(delete(Dataset).where(Dataset.status == FAILED, old))
            query = select(Dataset.id).where(Dataset.status.in_((PENDING, PROCESSING))).order_by(Dataset.created_at)
            undone = (await session.execute(query)).scalars().all()
        for dataset_id in undone:
            self.begin(dataset_id)

    async def close(self) -> None:
        """Stop; rows stay as they are, to be picked up again."""
        for dataset_id in list(self._tasks):
            await self.stop(dataset_id)

    def begin(self, dataset_id: uuid.UUID) -> None:
        """Process a data set in the background."""
        task = asyncio.create_task(self._work(dataset_id))
        self._tasks[dataset_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(dataset_id, None))

    async def stop(self, dataset_id: uuid.UUID) -> None:
        """End the processing of a data set, if there is any."""
        task = self._tasks.get(dataset_id)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _work(self, dataset_id: uuid.UUID) -> None:
        async with self._slots:
            row = await self._begun(dataset_id)
            if row is None:
                return
            try:
                if row.upload_id is not None:
                    await self._uploads.assemble(row.upload_id)
                await self.process(row)
            except HarmoniaError as error:
                await self._fail(row, error.message)
            except FileNotFoundError:
                await self._fail(row, "the uploaded file is gone; upload it again")
            except Exception:
                log.exception("processing the data set %s failed", row.id)
                await self._fail(row, "the server met an error of its own; its log has the trace")

    async def _begun(self, dataset_id: uuid.UUID) -> Dataset | None:
        async with self._database.begin() as session:
            row = await session.get(Dataset, dataset_id)
            if row is not None:
                row.status = PROCESSING
            return row

    async def process(self, row: Dataset) -> Dataset:
        """Check and convert the original, which is in the store. InvalidRequestError lists the lines that are wrong."""
        async with self._database.read() as session:
            query = select(Metric).where(Metric.project_id == row.project_id)
            known = {metric.key: metric for metric in (await session.execute(query)).scalars()}
        reader = DatasetReader(row.id, row.created_at, known)
        await self._files.put(row.converted, self._converted(row, reader), await self._files.size(row.original) or 0)
        try:
            done = await self._finish(row.id, reader)
        except IntegrityError:  # another data set brought the same new metric at this moment; now it is known
            done = await self._finish(row.id, reader)
        if done is None:
            await self._files.delete(row.original, row.converted)
            raise EntityNotFoundError(f"Dataset {row.key!r} was deleted while it was processed", entity="dataset")
        return done

    async def _finish(self, dataset_id: uuid.UUID, reader: DatasetReader) -> Dataset | None:
        async with self._database.begin() as session:
            done = await session.get(Dataset, dataset_id, with_for_update=True)
            if done is not None:
                await _register(session, done, reader)
                done.status, done.kind, done.records = READY, reader.kind, reader.records
                done.progress, done.processed_lines, done.upload_id = 1.0, reader.lines, None
            return done

    async def _converted(self, row: Dataset, reader: DatasetReader) -> AsyncIterator[bytes]:
        total, seen, loop = await self._files.size(row.original), 0, asyncio.get_running_loop()
        reported = loop.time()
        async for block in self._files.get(row.original):
            rows = await asyncio.to_thread(reader.feed, block)
            if rows:
                yield rows
            seen += len(block)
            if total and loop.time() > reported + _REPORT_S:
                reported = loop.time()
                await self._report(row.id, reader, seen / total)
        rows = await asyncio.to_thread(reader.finish)
        if rows:
            yield rows

    async def _report(self, dataset_id: uuid.UUID, reader: DatasetReader, progress: float) -> None:
        async with self._database.begin() as session:
            values = {"progress": progress, "processed_lines": reader.lines, "kind": reader.kind}
            await session.execute(update(Dataset).where(Dataset.id == dataset_id).values(values))

    async def _fail(self, row: Dataset, message: str) -> None:
        """Keep the reason, and let the key go, so that another try may have it."""
        async with self._database.begin() as session:
            values = {"status": FAILED, "error": message, "key": None, "upload_id": None}
            await session.execute(update(Dataset).where(Dataset.id == row.id).values(values))
        await self._files.delete(row.original, row.converted)

    async def discard(self, row: Dataset) -> None:
        """Leave nothing of a data set that did not come about."""
        async with self._database.begin() as session:
            await session.execute(delete(Dataset).where(Dataset.id == row.id))
        await self._files.delete(row.original, row.converted)


async def _register(session: AsyncSession, dataset: Dataset, reader: DatasetReader) -> None:
    """Note which metrics the rows speak of, and make those that the project does not have yet."""
    query = select(Metric).where(Metric.project_id == dataset.project_id)
    known = {metric.key: metric for metric in (await session.execute(query)).scalars()}
    await session.execute(delete(DatasetMetric).where(DatasetMetric.dataset_id == dataset.id))
    for key, use in reader.metrics.items():
        metric = known.get(key)
        if metric is None:
            about = f"Came with the data set {dataset.key}."
            new = NewMetric(name=key, key=key, kind=use.kind, description=about)
            metric = await add_metric(session, dataset.project_id, new)
        session.add(
            DatasetMetric(
                dataset_id=dataset.id,
                metric_id=metric.id,
                score_count=use.scores,
                comparison_count=use.comparisons,
            )
        )
