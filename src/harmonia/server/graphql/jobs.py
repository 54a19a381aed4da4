"""Jobs: runs of recipes."""

from __future__ import annotations

import uuid
from enum import Enum
from typing import Annotated

import strawberry
from strawberry.scalars import JSON

from harmonia.errors import InvalidRequestError
from harmonia.server.db import jobs as db
from harmonia.server.graphql.artifacts import JobArtifact, JobArtifactKind
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.job_filters import JobKind, JobStatus, ListJobsFilterInput
from harmonia.server.graphql.paging import CursorPageInput, OrderPair, PageInfo, SortDirection
from harmonia.server.graphql.people import User
from harmonia.server.graphql.projects import Project
from harmonia.server.graphql.recipes import CustomRecipe
from harmonia.server.graphql.scalars import IdOrKey, LongInt, Timestamp
from harmonia.server.services.jobs.jobs import JobInfo, NewJob
from harmonia.server.services.jobs.promotions import PromotedModel
from harmonia.server.services.keyset import Order

__all__ = ["Job", "JobArtifactKind", "JobMutation", "JobQuery"]


@strawberry.enum
class JobStatusOutput(Enum):
    """How a stage stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    CANCELLED = "CANCELLED"
    ERROR = "ERROR"


@strawberry.type
class TrainingJobStageOutput:
    """How far a training is."""

    monitoring_link: str | None
    total_num_samples: LongInt | None
    processed_num_samples: LongInt | None
    checkpoints: list[str]


@strawberry.type
class EvalJobStageOutput:
    """How far an evaluation is."""

    total_num_samples: LongInt | None
    processed_num_samples: LongInt | None
    monitoring_link: str | None


@strawberry.type
class BatchInferenceJobStageOutput:
    """How far answering a data set is."""

    total_num_samples: LongInt | None
    processed_num_samples: LongInt | None
    monitoring_link: str | None


JobStageInfoOutput = Annotated[
    TrainingJobStageOutput | EvalJobStageOutput | BatchInferenceJobStageOutput,
    strawberry.union("JobStageInfoOutput"),
]


@strawberry.type
class CustomRecipeJobDetails:
    """What a recipe was run with."""

    args: JSON
    recipe_hash: str | None
    resume_artifact_id: uuid.UUID | None


@strawberry.type
class InteractiveJobDetails:
    """A connection of somebody at a notebook."""

    ttl_after_disconnect_s: int | None
    connected_at: Timestamp | None
    last_disconnected_at: Timestamp | None


JobDetails = Annotated[CustomRecipeJobDetails | InteractiveJobDetails, strawberry.union("JobDetails")]


@strawberry.type
class JobDetailsCommon:
    """What it computes on."""

    pool_key: strawberry.Private[str | None]
    num_gpus: int | None
    gpu_duration_ms: LongInt | None

    @strawberry.field
    async def compute_pool_id(self, info: Info) -> uuid.UUID | None:
        """The pool; null for what needs no devices, and if the pool is there no longer."""
        return None if self.pool_key is None else await info.context.services.compute.pool_id(self.pool_key)


@strawberry.type
class JobStageOutput:
    """A part of a job."""

    name: str
    status: JobStatusOutput
    parent: str | None
    stage_id: int
    info: JobStageInfoOutput | None
    started_at: Timestamp | None
    ended_at: Timestamp | None
    duration_ms: LongInt | None

    @classmethod
    def of(cls, job: db.Job, stage: db.JobStage, later_began: bool) -> JobStageOutput:
        """From its row; later_began: whether a stage after it has begun."""
        ended = stage.ended_at or (job.ended_at if stage.started_at else None)
        return cls(
            name=stage.name,
            status=_stage_status(job, stage, later_began),
            parent=stage.parent,
            stage_id=stage.place,
            info=_stage_info(stage),
            started_at=_moment(stage.started_at),
            ended_at=_moment(ended),
            duration_ms=_between(stage.started_at, ended),
        )


@strawberry.type
class Job:
    """One run of a recipe, or the import of a model."""

    id: uuid.UUID
    project: Project | None
    name: str
    status: JobStatus
    created_at: Timestamp
    created_by: User | None
    started_at: Timestamp | None
    ended_at: Timestamp | None
    duration_ms: LongInt | None
    stages: list[JobStageOutput]
    artifacts: list[JobArtifact]
    progress: float
    error: str | None
    kind: JobKind
    recipe: CustomRecipe | None
    details: JobDetails | None
    common_details: JobDetailsCommon | None

    @classmethod
    def of(cls, info: JobInfo) -> Job:
        """From what the service knows."""
        job = info.job
        duration = _between(job.started_at, job.ended_at)
        last = max((stage.place for stage in info.stages if stage.started_at), default=-1)
        return cls(
            id=job.id,
            project=None if info.project is None else Project.of(info.project),
            name=job.name,
            status=JobStatus(job.status),
            created_at=Timestamp(job.created_at),
            created_by=None if info.creator is None else User.of(info.creator),
            started_at=_moment(job.started_at),
            ended_at=_moment(job.ended_at),
            duration_ms=duration,
            stages=[JobStageOutput.of(job, stage, stage.place < last) for stage in info.stages],
            artifacts=[JobArtifact.of(artifact) for artifact in info.artifacts],
            progress=info.progress,
            error=job.error,
            kind=JobKind.CUSTOM,
            recipe=_recipe(info),
            details=CustomRecipeJobDetails(
                args=JSON(job.args), recipe_hash=job.content_hash, resume_artifact_id=job.resume_artifact_id
            ),
            common_details=JobDetailsCommon(
                pool_key=job.compute_pool,
                num_gpus=job.num_gpus,
                gpu_duration_ms=None if duration is None else LongInt(duration * job.num_gpus),
            ),
        )


@strawberry.type
class JobEdge:
    """A job in its list."""

    node: Job
    cursor: str


@strawberry.type
class JobConnection:
    """A page of jobs."""

    page_info: PageInfo
    edges: list[JobEdge]
    nodes: list[Job]
    total_count: int


@strawberry.input
class JobInput:
    """A run that is wanted."""

    recipe: IdOrKey
    project: IdOrKey
    args: JSON
    num_gpus: int
    name: str | None = None
    compute_pool: IdOrKey | None = None
    max_cpu: float | None = None
    max_ram_gb: float | None = None
    max_duration_secs: int | None = None
    use_experimental_runner: bool = False
    image_tag: str | None = None
    resume_artifact_id: uuid.UUID | None = None


@strawberry.input
class UpdateJobInput:
    """What shall change."""

    name: str | None = None


@strawberry.input
class CheckpointModelPromotionInput:
    """modelKey: of a model of the training, as the checkpoint names it. name: of the model that shall be made."""

    model_key: str
    name: str


@strawberry.input
class PromoteCheckpointInput:
    """A checkpoint, and which of its models are wanted."""

    artifact_id: uuid.UUID
    models: list[CheckpointModelPromotionInput]


@strawberry.type
class JobQuery:
    """Jobs."""

    @strawberry.field
    async def jobs(
        self,
        info: Info,
        page: CursorPageInput,
        filter: ListJobsFilterInput | None = None,
        order: list[OrderPair] | None = None,
    ) -> JobConnection:
        """Those that the caller may see, the newest first unless another order is given."""
        wish = (filter or ListJobsFilterInput()).wish
        orders = [Order(item.field, item.order is SortDirection.DESC) for item in order or []]
        found, total, infos = await info.context.services.jobs.all(info.context.caller, wish, page.wish, orders)
        nodes = [Job.of(item) for item in infos]
        edges = [JobEdge(node=node, cursor=cursor) for node, cursor in zip(nodes, found.cursors, strict=True)]
        return JobConnection(page_info=PageInfo.of(found), edges=edges, nodes=nodes, total_count=total)

    @strawberry.field
    async def job(self, info: Info, id: uuid.UUID) -> Job | None:
        """One of them."""
        found = await info.context.services.jobs.find(info.context.caller, id)
        return None if found is None else Job.of(found)

    @strawberry.field
    async def artifact(self, info: Info, project: IdOrKey, id: uuid.UUID) -> JobArtifact | None:
        """Something that a job of a project made."""
        found = await info.context.services.jobs.artifact(info.context.caller, id, project)
        return None if found is None else JobArtifact.of(found)


@strawberry.type
class JobMutation:
    """Running recipes."""

    @strawberry.mutation
    async def create_job(self, info: Info, input: JobInput) -> Job:
        """A job that waits for its devices."""
        return Job.of(await info.context.services.jobs.create(info.context.caller, _new_job(input)))

    @strawberry.mutation
    async def cancel_job(self, info: Info, id: uuid.UUID) -> Job:
        """End a job."""
        return Job.of(await info.context.services.jobs.cancel(info.context.caller, id))

    @strawberry.mutation
    async def promote_checkpoint(self, info: Info, input: PromoteCheckpointInput) -> Job:
        """Make models of the registry of a checkpoint's, which goes with its job; the job that does it."""
        services = info.context.services
        models = [PromotedModel(item.model_key, item.name) for item in input.models]
        job = await services.promotions.create(info.context.caller, input.artifact_id, models)
        return Job.of(await services.jobs.info(job))

    @strawberry.mutation
    async def update_job(self, info: Info, id: uuid.UUID, input: UpdateJobInput) -> Job:
        """Rename a job."""
        return Job.of(await info.context.services.jobs.rename(info.context.caller, id, input.name))

    @strawberry.mutation
    async def delete_job(self, info: Info, id: uuid.UUID) -> bool:
        """Show a job that has ended no longer."""
        await info.context.services.jobs.delete(info.context.caller, id)
        return True


def _recipe(info: JobInfo) -> CustomRecipe | None:
    """An import has none, and no project either."""
    return None if info.recipe is None or info.project is None else CustomRecipe.of(info.recipe, info.project.key)


def _new_job(given: JobInput) -> NewJob:
    for name, value in (("imageTag", given.image_tag), ("maxCpu", given.max_cpu)):
        if value is not None:
            raise InvalidRequestError(f"{name} is for jobs in containers, which this server does not run", field=name)
    if given.use_experimental_runner:
        raise InvalidRequestError("there is one runner here; leave useExperimentalRunner out", field="numGpus")
    if not isinstance(given.args, dict):
        raise InvalidRequestError(f"args must be a JSON object, got {given.args!r:.80}", field="args")
    return NewJob(
        recipe=given.recipe,
        project=given.project,
        args=given.args,
        num_gpus=given.num_gpus,
        name=given.name,
        compute_pool=given.compute_pool,
        max_ram_gb=given.max_ram_gb,
        max_duration_s=given.max_duration_secs,
        resume_artifact_id=given.resume_artifact_id,
    )


def _stage_status(job: db.Job, stage: db.JobStage, later_began: bool) -> JobStatusOutput:
    if job.status == "COMPLETED" or stage.ended_at is not None:
        return JobStatusOutput.DONE
    if stage.started_at is None:
        return JobStatusOutput.CANCELLED if job.ended_at is not None else JobStatusOutput.PENDING
    if later_began:
        return JobStatusOutput.DONE
    ends = {"FAILED": JobStatusOutput.ERROR, "CANCELED": JobStatusOutput.CANCELLED}
    return ends.get(job.status, JobStatusOutput.RUNNING)


def _stage_info(stage: db.JobStage) -> TrainingJobStageOutput | EvalJobStageOutput | None:
    if stage.started_at is None:
        return None
    total = None if stage.total is None else LongInt(stage.total)
    processed = None if stage.processed is None else LongInt(stage.processed)
    if stage.kind == "eval":
        return EvalJobStageOutput(
            total_num_samples=total, processed_num_samples=processed, monitoring_link=stage.monitoring_link
        )
    return TrainingJobStageOutput(
        monitoring_link=stage.monitoring_link,
        total_num_samples=total,
        processed_num_samples=processed,
        checkpoints=list(stage.checkpoints),
    )


def _moment(value: int | None) -> Timestamp | None:
    return None if value is None else Timestamp(value)


def _between(start: int | None, end: int | None) -> LongInt | None:
    return None if start is None or end is None else LongInt(end - start)
