"""What jobs made."""

from __future__ import annotations

import uuid
from enum import Enum
from typing import Annotated

import strawberry
from strawberry.scalars import JSON

from harmonia.protocol.instances import SCHEME
from harmonia.server.db import jobs as db
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.datasets import Dataset
from harmonia.server.graphql.lazy import GRADER, JOB, object_of
from harmonia.server.graphql.metrics import Metric
from harmonia.server.graphql.models import Model, ModelService
from harmonia.server.graphql.scalars import Timestamp
from harmonia.server.services.jobs import evaluations as service
from harmonia.server.services.jobs.evaluations import results


@strawberry.enum
class JobArtifactKind(Enum):
    """What an artifact is."""

    EVALUATION = "EVALUATION"
    CUSTOM = "CUSTOM"
    DATASET = "DATASET"
    MODEL = "MODEL"
    CHECKPOINT = "CHECKPOINT"


@strawberry.enum
class JobArtifactStatus(Enum):
    """How it stands."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    READY = "READY"
    ERROR = "ERROR"


async def _grader(root: strawberry.Parent[EvaluationResult], info: Info) -> object | None:
    """Who gave the grades; null if the recipe brought a grader of its own, or the project's is gone."""
    metric = root.metric
    found = await info.context.services.graders.of_metric(info.context.caller, metric.project_id, metric.id)
    return None if found is None else object_of(info, "Grader", found)


@strawberry.type
class EvaluationResult:
    """The grades that one model got from one grader."""

    model_service: ModelService
    metric: Metric
    mean: float
    min: float
    max: float
    stddev: float
    sum: float
    sum_squared: float
    count: int
    score_count: int
    job_id: uuid.UUID
    artifact_id: uuid.UUID | None
    grader: object | None = strawberry.field(resolver=_grader, graphql_type=GRADER)

    @classmethod
    def of(cls, found: service.EvaluationResult, artifact: db.JobArtifact) -> EvaluationResult:
        """From what the service knows."""
        numbers = found.statistics
        return cls(
            model_service=ModelService.of(found.service),
            metric=Metric.of(found.metric),
            mean=numbers.mean,
            min=numbers.min,
            max=numbers.max,
            stddev=numbers.stddev,
            sum=numbers.sum,
            sum_squared=numbers.sum_squared,
            count=numbers.count,
            score_count=numbers.count,
            job_id=artifact.job_id,
            artifact_id=artifact.id,
        )


@strawberry.type
class EvaluationByproducts:
    """What an evaluation found."""

    eval_results: list[EvaluationResult]


@strawberry.type
class DatasetByproducts:
    """The data set that an artifact became."""

    dataset: Dataset | None


@strawberry.type
class ModelByproducts:
    """The model that an artifact became."""

    model: Model | None


ArtifactByproducts = Annotated[
    EvaluationByproducts | DatasetByproducts | ModelByproducts, strawberry.union("ArtifactByproducts")
]


async def _job(root: strawberry.Parent[JobArtifact], info: Info) -> object | None:
    """The job that made it."""
    found = await info.context.services.jobs.find(info.context.caller, root.job_id)
    return None if found is None else object_of(info, "Job", found)


@strawberry.type
class JobArtifact:
    """Something that a job made."""

    id: uuid.UUID
    job_id: uuid.UUID
    name: str
    kind: JobArtifactKind
    status: JobArtifactStatus
    uri: str | None
    metadata: JSON
    created_at: Timestamp
    download_url: str | None
    job: object | None = strawberry.field(resolver=_job, graphql_type=JOB)
    row: strawberry.Private[db.JobArtifact]

    @strawberry.field
    async def byproducts(self, info: Info) -> ArtifactByproducts | None:
        """What the platform made of it; null while there is nothing."""
        services = info.context.services
        if self.kind is JobArtifactKind.EVALUATION and self.row.results:
            found = await results(services.database, self.row)
            return EvaluationByproducts(eval_results=[EvaluationResult.of(each, self.row) for each in found])
        if self.kind is JobArtifactKind.MODEL and self.status is JobArtifactStatus.READY:
            key = str(self.row.details.get("model_key") or self.row.name)
            model = await services.models.find(info.context.caller, key)
            return None if model is None else ModelByproducts(model=Model.of(model))
        return None

    @classmethod
    def of(cls, row: db.JobArtifact) -> JobArtifact:
        """From its row."""
        url = None if row.file is None else f"/api/v1/artifacts/{row.id}/download"
        key = row.details.get("model_key") if row.kind == "MODEL" else None
        return cls(
            id=row.id,
            job_id=row.job_id,
            name=row.name,
            kind=JobArtifactKind(row.kind),
            status=JobArtifactStatus(row.status),
            uri=url if key is None else f"{SCHEME}{key}",
            metadata=JSON(row.details),
            created_at=Timestamp(row.created_at),
            download_url=url,
            row=row,
        )
