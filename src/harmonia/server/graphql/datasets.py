"""Data sets, and how far their processing is."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from enum import Enum

import strawberry
from starlette.datastructures import UploadFile
from strawberry.file_uploads import Upload

from harmonia.errors import InvalidRequestError
from harmonia.server.db import datasets as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.metrics import Metric
from harmonia.server.graphql.projects import Project
from harmonia.server.graphql.scalars import DateTimeText, IdOrKey, Key, rfc3339
from harmonia.server.services.datasets.datasets import MetricUsage, NewDataset
from harmonia.server.services.files import BLOCK_BYTES


@strawberry.enum
class DatasetKind(Enum):
    """What the rows hold."""

    PROMPT = "PROMPT"
    PROMPT_COMPLETION = "PROMPT_COMPLETION"
    PROMPT_COMPLETION_SCORE = "PROMPT_COMPLETION_SCORE"
    PREFERENCE = "PREFERENCE"


@strawberry.enum
class DatasetSource(Enum):
    """Where a data set comes from."""

    UPLOADED = "UPLOADED"
    GENERATED = "GENERATED"
    GENERATING = "GENERATING"
    FILTERED = "FILTERED"


@strawberry.enum
class DatasetStatus(Enum):
    """Whether a data set can be used."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    READY = "READY"
    FAILED = "FAILED"


@strawberry.enum
class SessionStatus(Enum):
    """Whether the processing of an upload has ended."""

    PENDING = "PENDING"
    DONE = "DONE"
    ERROR = "ERROR"


_SESSION = {"READY": SessionStatus.DONE, "FAILED": SessionStatus.ERROR}


@strawberry.type
class DatasetMetricUsage:
    """How often the rows speak of a metric."""

    metric: Metric
    score_count: int
    comparison_count: int

    @classmethod
    def of(cls, usage: MetricUsage) -> DatasetMetricUsage:
        """From what the service counted."""
        return cls(metric=Metric.of(usage.metric), score_count=usage.scores, comparison_count=usage.comparisons)


@strawberry.type
class DatasetProgress:
    """How far the processing is: from 0 to 1, and in lines of the file."""

    progress: float
    processed_lines: int


@strawberry.type
class Dataset:
    """Rows to train, evaluate or generate from."""

    id: uuid.UUID
    key: str | None
    name: str
    created_at: DateTimeText
    kind: DatasetKind
    records: int | None
    source: DatasetSource | None
    status: DatasetStatus
    deleted: bool
    progress: DatasetProgress | None
    download_url: str
    metrics_usage: list[DatasetMetricUsage]
    project_id: strawberry.Private[uuid.UUID]

    @classmethod
    def of(cls, row: db.Dataset, usages: Sequence[MetricUsage]) -> Dataset:
        """From its row. What is deleted is gone, so none is ever shown as deleted."""
        return cls(
            id=row.id,
            key=row.key,
            name=row.name,
            created_at=rfc3339(row.created_at),
            kind=DatasetKind(row.kind),
            records=row.records,
            source=DatasetSource(row.source),
            status=DatasetStatus(row.status),
            deleted=False,
            progress=DatasetProgress(progress=row.progress, processed_lines=row.processed_lines),
            download_url=f"/api/v1/projects/{row.project_id}/datasets/{row.id}/download",
            metrics_usage=[DatasetMetricUsage.of(usage) for usage in usages],
            project_id=row.project_id,
        )

    @strawberry.field
    async def project(self, info: Info) -> Project | None:
        """Where it belongs."""
        row = await info.context.services.projects.find(info.context.caller, str(self.project_id))
        return None if row is None else Project.of(row)


async def datasets_of(info: Info, rows: Sequence[db.Dataset]) -> list[Dataset]:
    """Data sets with what their rows speak of, in one query for all."""
    usages = await info.context.services.datasets.metrics_usage([row.id for row in rows])
    return [Dataset.of(row, usages.get(row.id, [])) for row in rows]


@strawberry.type
class DatasetUploadProcessingStatus:
    """How far the processing of an upload is; progress: from 0 to 1; error: what is wrong with the file."""

    dataset_id: uuid.UUID
    status: SessionStatus
    progress: float
    error: str | None

    @classmethod
    def of(cls, row: db.Dataset) -> DatasetUploadProcessingStatus:
        """From the row of the data set."""
        status = _SESSION.get(row.status, SessionStatus.PENDING)
        return cls(dataset_id=row.id, status=status, progress=row.progress, error=row.error)


@strawberry.input
class DatasetCreate:
    """A data set of a file that comes along."""

    project: IdOrKey
    name: str
    key: Key | None = None
    source: DatasetSource | None = None


@strawberry.input
class DatasetCreateFromMultipartUpload:
    """A data set of an upload in parts."""

    project: IdOrKey
    name: str
    upload_session_id: str
    key: Key | None = None
    source: DatasetSource | None = None


@strawberry.input
class DatasetUploadProcessingStatusInput:
    """Which processing is asked for."""

    project: IdOrKey
    dataset_id: uuid.UUID


@strawberry.type
class DatasetQuery:
    """Data sets."""

    @strawberry.field
    async def datasets(self, info: Info, project: IdOrKey) -> list[Dataset]:
        """Those of a project."""
        return await datasets_of(info, await info.context.services.datasets.all(info.context.caller, project))

    @strawberry.field
    async def dataset(self, info: Info, id_or_key: IdOrKey, project: IdOrKey) -> Dataset | None:
        """One of them."""
        row = await info.context.services.datasets.find(info.context.caller, project, id_or_key)
        return None if row is None else (await datasets_of(info, [row]))[0]

    @strawberry.field
    async def dataset_upload_processing_status(
        self, info: Info, input: DatasetUploadProcessingStatusInput
    ) -> DatasetUploadProcessingStatus:
        """How far the processing of an upload is."""
        services, caller = info.context.services, info.context.caller
        return DatasetUploadProcessingStatus.of(
            await services.datasets.progress(caller, input.project, input.dataset_id)
        )


@strawberry.type
class DatasetMutation:
    """Changing data sets."""

    @strawberry.mutation
    async def create_dataset(self, info: Info, input: DatasetCreate, file: Upload) -> Dataset:
        """A data set of a file, checked and ready on return."""
        if not isinstance(file, UploadFile):
            raise InvalidRequestError("file must come as a part of a multipart form", field="file")
        try:
            row = await info.context.services.datasets.create(info.context.caller, _new(input), _blocks(file))
        finally:
            await file.close()
        return (await datasets_of(info, [row]))[0]

    @strawberry.mutation
    async def create_dataset_from_multipart_upload(
        self, info: Info, input: DatasetCreateFromMultipartUpload
    ) -> DatasetUploadProcessingStatus:
        """A data set of an upload whose parts have all come; it is processed in the background."""
        services, caller = info.context.services, info.context.caller
        row = await services.datasets.create_from_upload(caller, _new(input), input.upload_session_id)
        return DatasetUploadProcessingStatus.of(row)

    @strawberry.mutation
    async def delete_dataset(self, info: Info, id_or_key: IdOrKey, project: IdOrKey) -> bool:
        """Remove a data set and its files."""
        await info.context.services.datasets.delete(info.context.caller, project, id_or_key)
        return True


def _new(input: DatasetCreate | DatasetCreateFromMultipartUpload) -> NewDataset:
    source = input.source or DatasetSource.UPLOADED
    return NewDataset(project=input.project, name=input.name, key=input.key, source=source.value)


async def _blocks(file: UploadFile) -> AsyncIterator[bytes]:
    while block := await file.read(BLOCK_BYTES):
        yield block
