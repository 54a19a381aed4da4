"""Data sets of a project: taken in, checked and converted, found, downloaded and deleted."""

from __future__ import annotations

import contextlib
import uuid
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from harmonia.errors import EntityNotFoundError, InvalidRequestError, PermissionDeniedError
from harmonia.server.db.base import MAX_KEY
from harmonia.server.db.database import Database
from harmonia.server.db.datasets import Dataset, DatasetMetric
from harmonia.server.db.metrics import Metric
from harmonia.server.services.access import Caller, require_in_project
from harmonia.server.services.audit import record
from harmonia.server.services.datasets.processing import FAILED, PENDING, PROCESSING, READY, DatasetProcessing
from harmonia.server.services.datasets.rows import PROMPT
from harmonia.server.services.datasets.uploads import Uploads
from harmonia.server.services.files import Files, new_name
from harmonia.server.services.keys import checked_key, key_from
from harmonia.server.services.metrics import MetricInfo, metric_infos

ORIGINAL, RECIPE = "original", "recipe"
_CREATE, _READ = "dataset:create", "dataset:read"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDataset:
    """A data set to make. project: id or key; key: None makes one of the name."""

    project: str
    name: str
    key: str | None = None
    source: str = "UPLOADED"


@dataclass(frozen=True, slots=True)
class MetricUsage:
    """How often the rows of a data set speak of a metric."""

    metric: MetricInfo
    scores: int
    comparisons: int


@dataclass(frozen=True, slots=True)
class Download:
    """A file on its way to a client."""

    file_name: str
    size: int
    blocks: AsyncIterator[bytes]


class Datasets:
    """Everything about data sets."""

    def __init__(self, database: Database, files: Files, uploads: Uploads) -> None:
        self._database = database
        self._files = files
        self._uploads = uploads
        self._processing = DatasetProcessing(database, files, uploads)

    async def start(self) -> None:
        """Go on with what an earlier process left undone."""
        await self._processing.start()

    async def close(self) -> None:
        """Leave the rest to the next process."""
        await self._processing.close()

    # ------------------------------------------------------------------------------------------------ making them

    async def create(self, caller: Caller, new: NewDataset, chunks: AsyncIterable[bytes]) -> Dataset:
        """A data set of a file, ready on return. `InvalidRequestError` lists the lines that are wrong; then there is no
        data set.
        """
        row = await self._insert(caller, new, PROCESSING)
        try:
            await self._files.put(row.original, chunks)
            return await self._processing.process(row)
        except BaseException:
            await self._processing.discard(row)
            raise

    async def create_from_upload(self, caller: Caller, new: NewDataset, session_id: str) -> Dataset:
        """A data set of an upload in parts, which all have come; it is processed in the background."""
        async with self._database.read() as session:
            await require_in_project(session, caller, new.project, _CREATE)
        await self._uploads.require_complete(caller, session_id)
        row = await self._insert(caller, new, PENDING, session_id)
        self._processing.begin(row.id)
        return row

    async def _insert(self, caller: Caller, new: NewDataset, status: str, session_id: str | None = None) -> Dataset:
        key = _new_key(new)
        try:
            async with self._database.begin() as session:
                access = await require_in_project(session, caller, new.project, _CREATE)
                await _require_free(session, access.project_id, key)
                upload = None if session_id is None else await self._uploads.claim(session, caller, session_id)
                row = Dataset(
                    project_id=access.project_id,
                    key=key,
                    name=new.name,
                    source=new.source,
                    status=status,
                    kind=PROMPT,
                    created_by=caller.user_id,
                    original=new_name() if upload is None else upload.file,
                    converted=new_name(),
                    upload_id=None if upload is None else upload.id,
                )
                session.add(row)
                record(session, caller, "dataset.create", f"dataset/{key}", project=access.project_key)
                return row
        except IntegrityError as error:  # somebody else was faster by a moment
            raise _taken(key) from error

    # ----------------------------------------------------------------------------------------------- finding them

    async def all(self, caller: Caller, project: str) -> list[Dataset]:
        """Those of a project, oldest first, without those that failed."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, _READ)
            query = select(Dataset).where(Dataset.project_id == access.project_id, Dataset.status != FAILED)
            return list((await session.execute(query.order_by(Dataset.created_at, Dataset.key))).scalars())

    async def find(self, caller: Caller, project: str, dataset: str) -> Dataset | None:
        """One by id or key; None if there is none that the caller may see."""
        async with self._database.read() as session:
            try:
                access = await require_in_project(session, caller, project, _READ)
            except (EntityNotFoundError, PermissionDeniedError):
                return None
            return await _named(session, access.project_id, dataset)

    async def progress(self, caller: Caller, project: str, dataset_id: uuid.UUID) -> Dataset:
        """One whose processing may not have ended, or have failed."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, _READ)
            row = await session.get(Dataset, dataset_id)
            if row is None or row.project_id != access.project_id:
                raise _not_found(str(dataset_id))
            return row

    async def metrics_usage(self, dataset_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[MetricUsage]]:
        """What the rows of data sets that the caller has found speak of; data sets that speak of none are left out."""
        async with self._database.read() as session:
            query = select(DatasetMetric).where(DatasetMetric.dataset_id.in_(dataset_ids))
            uses = (await session.execute(query)).scalars().all()
            infos = await metric_infos(session, Metric.id.in_({use.metric_id for use in uses})) if uses else []
        metrics = {info.row.id: info for info in infos}
        found: dict[uuid.UUID, list[MetricUsage]] = defaultdict(list)
        for use in uses:
            found[use.dataset_id].append(MetricUsage(metrics[use.metric_id], use.score_count, use.comparison_count))
        return {key: sorted(usages, key=lambda usage: usage.metric.row.key) for key, usages in found.items()}

    async def download(self, caller: Caller, project: str, dataset: str, form: str) -> Download:
        """The rows: as they were uploaded, or as recipes read them. An original that is gone is replaced by those."""
        if form not in (ORIGINAL, RECIPE):
            raise InvalidRequestError(f"format is {form!r:.80}; give {ORIGINAL!r} or {RECIPE!r}", field="format")
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, _READ)
            row = await _named(session, access.project_id, dataset)
        if row is None:
            raise _not_found(dataset)
        if row.status != READY:
            raise InvalidRequestError(
                f"data set {dataset!r} is still being processed; ask again later", field="dataset"
            )
        for name in (row.original, row.converted) if form == ORIGINAL else (row.converted,):
            size = await self._files.size(name)
            if size is not None:
                return Download(f"{row.key}.jsonl", size, self._files.get(name))
        raise EntityNotFoundError(f"The file of dataset {dataset!r} does not exist any longer", entity="dataset")

    # ---------------------------------------------------------------------------------------------- removing them

    async def delete(self, caller: Caller, project: str, dataset: str) -> None:
        """Remove a data set and its files."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, _CREATE)
            row = await _named(session, access.project_id, dataset)
            if row is None:
                raise _not_found(dataset)
            await session.execute(delete(DatasetMetric).where(DatasetMetric.dataset_id == row.id))
            await session.delete(row)
            record(session, caller, "dataset.delete", f"dataset/{row.key}", project=access.project_key)
        await self._processing.stop(row.id)
        await self._files.delete(row.original, row.converted)


def _new_key(new: NewDataset) -> str:
    if not new.name.strip() or len(new.name) > MAX_KEY:
        raise InvalidRequestError(f"a name has 1 to {MAX_KEY} characters, got {new.name[:80]!r}", field="name")
    key = checked_key(new.key) if new.key else key_from(new.name.replace("/", " "))
    if "/" in key:
        raise InvalidRequestError(
            f"the key of a data set holds no '/', since jobs keep its file under that name; got {key!r}", field="key"
        )
    return key


async def _require_free(session: AsyncSession, project_id: uuid.UUID, key: str) -> None:
    query = select(Dataset.id).where(Dataset.project_id == project_id, Dataset.key == key)
    if (await session.execute(query)).first() is not None:
        raise _taken(key)


async def _named(session: AsyncSession, project_id: uuid.UUID, dataset: str) -> Dataset | None:
    is_named = Dataset.key == dataset
    with contextlib.suppress(ValueError):
        is_named = or_(is_named, Dataset.id == uuid.UUID(dataset))
    query = select(Dataset).where(Dataset.project_id == project_id, Dataset.status != FAILED, is_named)
    return (await session.execute(query)).scalar_one_or_none()


def _taken(key: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"there is a data set with the key {key!r} already; delete it first, or choose another key", field="key"
    )


def _not_found(dataset: str) -> EntityNotFoundError:
    return EntityNotFoundError(f"Dataset {dataset!r} does not exist", entity="dataset")
