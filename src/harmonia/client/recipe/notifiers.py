"""Telling the world about a job: its stages, its progress, what it made and how it ended."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Protocol, Self

from harmonia.client.recipe.failures import recipe_traceback
from harmonia.client.table import Table
from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.log import get_logger

log = get_logger(__name__)

Metric = float | int | str | Table
_KINDS_WITH_A_FILE = ("dataset", "eval")


class Artifact(Protocol):
    """What a notifier knows of an artifact."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def processing_mode(self) -> Enum: ...


class MissingUploadError(InvalidRequestError, ValueError):
    """An artifact that consists of a file was registered without one."""


@dataclass(frozen=True)
class PendingArtifact:
    """An artifact whose file is handed over when it is finalized, at the latest when the job ends."""

    artifact: Artifact
    file_path: str


class StageNotifier(ABC):
    """Reports about one stage of a job."""

    @property
    @abstractmethod
    def job_notifier(self) -> JobNotifier:
        """The job that the stage belongs to."""

    @property
    @abstractmethod
    def stage_name(self) -> str:
        """The name under which the stage was registered."""

    @abstractmethod
    def report_progress(
        self,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Sequence[str] | None = None,
    ) -> None:
        """Tell how far the stage is; None leaves a value as it was."""

    @abstractmethod
    def set_monitoring_link(self, monitoring_link: str) -> None:
        """Tell where the stage's curves can be seen."""

    def report_metrics(self, metrics: Mapping[str, Metric]) -> None:
        """Tell what a metric logger was told."""
        self.job_notifier.report_metrics(self.stage_name, metrics)


class OptionalReports:
    """What a job may tell besides; whoever does not listen need not implement it."""

    shows_metrics = False
    """It shows what `report_metrics` tells, so that nobody need print it."""

    def describe(self, recipe: str, config: Mapping[str, Any]) -> None:
        """Tell what runs and with which input, once the input was validated."""

    def report_metrics(self, stage: str, metrics: Mapping[str, Metric]) -> None:
        """Tell what a metric logger was told."""

    def start_heartbeat(self, interval_seconds: float = 30.0) -> None:
        """Begin to tell every so many seconds that the job is alive."""

    def stop_heartbeat(self) -> None:
        """End what `start_heartbeat` began."""

    def heartbeat(self) -> None:
        """Tell once that the job is alive."""


class JobNotifier(OptionalReports, ABC):
    """Reports about a job.

    As a context manager it tells how the job ended: complete, canceled, or failed with the traceback. Artifacts that
    are pending are handed over first in all cases, so that what was made is kept.
    """

    def __init__(self, job_id: str = "local") -> None:
        self.job_id = job_id
        self.stages: list[str] = []
        """Names of the stages, in the order in which they run."""
        self._pending: dict[str, PendingArtifact] = {}

    # ---------------------------------------------------------------------------------------------- progress

    @abstractmethod
    def register_stages(self, stages: Sequence[str]) -> None:
        """Name the stages of the job, in order."""

    @abstractmethod
    def stage_notifier(self, stage: str) -> StageNotifier:
        """The notifier of one stage."""

    @abstractmethod
    def report_progress(
        self,
        stage: str,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Sequence[str] | None = None,
    ) -> None:
        """Tell how far a stage is; None leaves a value as it was."""

    @abstractmethod
    def set_monitoring_link(self, monitoring_link: str) -> None:
        """Tell where the job's curves can be seen."""

    @abstractmethod
    def report_checkpoint(
        self,
        checkpoint_id: str,
        step: int,
        completion_percentage: float,
        model_checkpoint_names: dict[str, str] | None = None,
        user_data: dict[str, Any] | None = None,
        stage_name: str | None = None,
    ) -> None:
        """Tell of a checkpoint: the names of its saved models by model, and what a resumed run needs (`user_data`)."""

    # ----------------------------------------------------------------------------------------------- life

    @abstractmethod
    def mark_running(self) -> None:
        """Tell that the recipe begins."""

    @abstractmethod
    def complete(self) -> None:
        """Hand over pending artifacts and tell that the job succeeded."""

    @abstractmethod
    def report_error(self, error: str) -> None:
        """Tell that the job failed, with the text of its traceback."""

    def mark_canceled(self) -> None:
        """Tell that the job was canceled."""
        self.report_error("the job was canceled")

    def close(self) -> None:
        """Let go of everything; the job says nothing after this."""
        self.stop_heartbeat()

    # ------------------------------------------------------------------------------------------- artifacts

    @abstractmethod
    def register_artifact(self, artifact: Artifact, session_id: str | None = None) -> None:
        """Tell of an artifact; `session_id` names the upload of its file. ValueError where a file is needed."""

    @abstractmethod
    def finalize_artifact(self, artifact: Artifact, file_path: str) -> None:
        """Hand over the file of an artifact and register it."""

    def add_pending_artifact(self, artifact: Artifact, file_path: str) -> None:
        """Remember an artifact whose file is still being written."""
        self._pending[artifact.id] = PendingArtifact(artifact, file_path)

    def remove_pending_artifact(self, artifact_id: str) -> None:
        """Forget a pending artifact; unknown ids are none of our business."""
        self._pending.pop(artifact_id, None)

    def finalize_pending_artifacts(self) -> None:
        """Hand over all pending artifacts. One that fails keeps no other from being tried; its error is raised last."""
        failures: list[Exception] = []
        for pending in list(self._pending.values()):
            try:
                self.finalize_artifact(pending.artifact, pending.file_path)
                self.remove_pending_artifact(pending.artifact.id)
            except (HarmoniaError, OSError) as error:
                log.warning("artifact '%s' was not handed over: %s", pending.artifact.name, error)
                failures.append(error)
        if failures:
            raise failures[0]

    # ------------------------------------------------------------------------------------ context manager

    def settle(self, error: BaseException | None) -> None:
        """Tell how the job ended: None stands for success, and so does `sys.exit(0)`."""
        if error is None or (isinstance(error, SystemExit) and not error.code):
            try:
                self.complete()
            except Exception as failure:
                self.report_error(recipe_traceback(failure))
                raise
            return
        try:
            self.finalize_pending_artifacts()
        except (HarmoniaError, OSError) as failure:
            log.warning("results of a job that did not complete are missing: %s", failure)
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            self.mark_canceled()
        else:
            self.report_error(recipe_traceback(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.settle(error)
        finally:
            self.close()


class ForwardingStage(StageNotifier):
    """A stage that says everything through its job."""

    def __init__(self, notifier: JobNotifier, stage: str) -> None:
        self._job = notifier
        self._stage = stage

    @property
    def job_notifier(self) -> JobNotifier:
        """The job that the stage belongs to."""
        return self._job

    @property
    def stage_name(self) -> str:
        """The name of the stage."""
        return self._stage

    def report_progress(
        self,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Sequence[str] | None = None,
    ) -> None:
        """Tell how far the stage is."""
        self._job.report_progress(self._stage, tot_num_samples, processed_num_samples, monitoring_link, checkpoints)

    def set_monitoring_link(self, monitoring_link: str) -> None:
        """Tell where the stage's curves can be seen."""
        self._job.report_progress(self._stage, monitoring_link=monitoring_link)


def clamp_processed(stage: str, total: int | None, processed: int | None) -> int | None:
    """The number of processed samples, at most the total: a recipe that loops over its data may overshoot."""
    if total is None or processed is None or processed <= total:
        return processed
    log.warning("stage '%s' reports %d of %d samples; showing %d", stage, processed, total, total)
    return total


def check_upload(artifact: Artifact, session_id: str | None) -> None:
    """MissingUploadError for an artifact that consists of its file and comes without."""
    if artifact.kind in _KINDS_WITH_A_FILE and session_id is None:
        raise MissingUploadError(
            f"{artifact.kind} '{artifact.name}' cannot be registered without its file; call finalize() on the artifact"
        )
