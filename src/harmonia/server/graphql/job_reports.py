"""What running jobs say of themselves."""

from __future__ import annotations

import uuid
from enum import Enum
from typing import Any

import strawberry
from strawberry.scalars import JSON

from harmonia.errors import InvalidRequestError
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.scalars import LongInt
from harmonia.server.services.access import Caller
from harmonia.server.services.jobs.reports import JobReports, NewArtifact, StageProgress, StageWish


@strawberry.enum
class JobArtifactKindInput(Enum):
    """What an artifact is."""

    EVALUATION = "EVALUATION"
    CUSTOM = "CUSTOM"
    DATASET = "DATASET"
    MODEL = "MODEL"
    CHECKPOINT = "CHECKPOINT"


@strawberry.enum
class ArtifactProcessingModeInput(Enum):
    """When an artifact is looked into."""

    ON_REGISTRATION = "ON_REGISTRATION"
    ON_COMPLETION = "ON_COMPLETION"


@strawberry.input
class StageDefinitionInput:
    """A stage that will be."""

    stage_key: str
    stage_id: int
    parent: str | None = None


@strawberry.input
class RegisterStagesInput:
    """All stages."""

    stages: list[StageDefinitionInput]


@strawberry.input
class TrainStageInfoInput:
    """How far a training is; null leaves a value."""

    monitoring_link: str | None = None
    total_num_samples: LongInt | None = None
    processed_num_samples: LongInt | None = None
    checkpoints: list[str] | None = None


@strawberry.input
class EvalStageInfoInput:
    """How far an evaluation is; null leaves a value."""

    monitoring_link: str | None = None
    total_num_samples: LongInt | None = None
    processed_num_samples: LongInt | None = None


@strawberry.input
class JobStageInfoInput:
    """One of the two."""

    train: TrainStageInfoInput | None = None
    eval: EvalStageInfoInput | None = None


@strawberry.input
class UpdateProgressInput:
    """How far a stage is."""

    stage_key: str
    info: JobStageInfoInput


@strawberry.input
class ReportErrorInput:
    """Why the job failed."""

    error: str


@strawberry.input
class RegisterArtifactInput:
    """Something that was made."""

    artifact_id: uuid.UUID
    name: str
    kind: JobArtifactKindInput
    metadata: JSON | None = None
    session_id: str | None = None
    processing_mode: ArtifactProcessingModeInput | None = None


@strawberry.input
class ReportCheckpointInput:
    """A point from which the job can be resumed."""

    artifact_id: uuid.UUID
    step: int
    completion_percentage: float
    model_checkpoint_names: JSON | None = None  # a default of {} cannot be told in an introspection
    user_data: JSON | None = None
    stage_name: str | None = None


@strawberry.input
class MarkRunningInput:
    """Nothing to say."""

    placeholder: bool | None = None


@strawberry.input
class CompleteInput:
    """Nothing to say."""

    placeholder: bool | None = None


@strawberry.input
class HeartbeatInput:
    """Nothing to say."""

    placeholder: bool | None = None


@strawberry.input
class JobProgressEventInput:
    """Exactly one of these."""

    register_stages: RegisterStagesInput | None = None
    update_progress: UpdateProgressInput | None = None
    report_error: ReportErrorInput | None = None
    register_artifact: RegisterArtifactInput | None = None
    report_checkpoint: ReportCheckpointInput | None = None
    mark_running: MarkRunningInput | None = None
    complete: CompleteInput | None = None
    heartbeat: HeartbeatInput | None = None


@strawberry.type
class JobProgressResult:
    """Whether it was taken in."""

    success: bool
    message: str | None


@strawberry.type
class JobReportMutation:
    """For running jobs."""

    @strawberry.mutation
    async def update_job_progress(
        self, info: Info, job_id: uuid.UUID, event: JobProgressEventInput
    ) -> JobProgressResult:
        """Take in what a job says."""
        given = [value for value in vars(event).values() if value is not None]
        if len(given) != 1:
            raise InvalidRequestError(f"an event says exactly one thing, this one {len(given)}", field="event")
        await _take(info.context.services.job_reports, info.context.caller, job_id, given[0])
        return JobProgressResult(success=True, message=None)


async def _take(reports: JobReports, caller: Caller, job_id: uuid.UUID, event: object) -> None:
    match event:
        case RegisterStagesInput():
            stages = [StageWish(item.stage_key, item.stage_id, item.parent) for item in event.stages]
            await reports.register_stages(caller, job_id, stages)
        case UpdateProgressInput():
            await reports.progress(caller, job_id, _progress(event))
        case ReportErrorInput():
            await reports.failed(caller, job_id, event.error)
        case RegisterArtifactInput():
            await reports.artifact(caller, job_id, _artifact(event))
        case ReportCheckpointInput():
            await reports.artifact(caller, job_id, _checkpoint(event))
        case MarkRunningInput() | HeartbeatInput():
            await reports.heartbeat(caller, job_id)
        case CompleteInput():
            await reports.complete(caller, job_id)


def _progress(event: UpdateProgressInput) -> StageProgress:
    train, evaluation = event.info.train, event.info.eval
    info = train or evaluation
    if info is None or (train is not None and evaluation is not None):
        raise InvalidRequestError("say either train or eval of a stage", field="info")
    return StageProgress(
        name=event.stage_key,
        kind="eval" if train is None else "train",
        total=info.total_num_samples,
        processed=info.processed_num_samples,
        monitoring_link=info.monitoring_link,
        checkpoints=None if train is None else train.checkpoints,
    )


def _artifact(event: RegisterArtifactInput) -> NewArtifact:
    details = _object(event.metadata, "metadata")
    return NewArtifact(
        id=event.artifact_id, name=event.name, kind=event.kind.value, details=details, session_id=event.session_id
    )


def _checkpoint(event: ReportCheckpointInput) -> NewArtifact:
    details = {
        "step": event.step,
        "completion_percentage": event.completion_percentage,
        "model_checkpoint_names": _object(event.model_checkpoint_names, "modelCheckpointNames"),
        "user_data": event.user_data,
        "stage_name": event.stage_name,
    }
    name = f"{event.stage_name or 'checkpoint'}-{event.step}"
    return NewArtifact(id=event.artifact_id, name=name, kind="CHECKPOINT", details=details)


def _object(value: Any, name: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InvalidRequestError(f"{name} must be a JSON object, got {value!r:.80}", field=name)
    return dict(value or {})
