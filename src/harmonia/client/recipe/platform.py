"""A job that reports to the control plane."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harmonia.client.recipe.control_plane import ControlPlane
from harmonia.client.recipe.notifiers import Artifact, ForwardingStage, JobNotifier, check_upload, clamp_processed
from harmonia.errors import InvalidRequestError

_HEARTBEAT_S = 10.0


class UnknownStageError(InvalidRequestError, ValueError):
    """A stage that was not registered."""


class ControlPlaneStageNotifier(ForwardingStage):
    """Reports about one stage of a `ControlPlaneJobNotifier`."""

    def __init__(self, notifier: ControlPlaneJobNotifier, stage: str) -> None:
        super().__init__(notifier, stage)


class ControlPlaneJobNotifier(JobNotifier):
    """Reports every change to the control plane, and uploads the files of artifacts there."""

    def __init__(self, control_plane: ControlPlane, job_id: str) -> None:
        super().__init__(job_id)
        self._control_plane = control_plane
        self._interval_s = _HEARTBEAT_S

    def register_stages(self, stages: Sequence[str]) -> None:
        """Name the stages of the job, in order."""
        self.stages = list(stages)
        before = [None, *self.stages]
        rows = [(stage, place, before[place]) for place, stage in enumerate(self.stages)]
        self._control_plane.register_job_stages(self.job_id, rows)

    def stage_notifier(self, stage: str) -> ControlPlaneStageNotifier:
        """The notifier of a registered stage; ValueError for others."""
        self._check_stage(stage)
        return ControlPlaneStageNotifier(self, stage)

    def report_progress(
        self,
        stage: str,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Sequence[str] | None = None,
    ) -> None:
        """Tell how far a registered stage is; ValueError for others."""
        self._check_stage(stage)
        processed = clamp_processed(stage, tot_num_samples, processed_num_samples)
        self._control_plane.update_job_progress(
            self.job_id, stage, tot_num_samples, processed, monitoring_link, checkpoints
        )

    def set_monitoring_link(self, monitoring_link: str) -> None:
        """Tell where the job's curves can be seen."""
        self._control_plane.set_monitoring_link(self.job_id, monitoring_link)

    def report_checkpoint(
        self,
        checkpoint_id: str,
        step: int,
        completion_percentage: float,
        model_checkpoint_names: dict[str, str] | None = None,
        user_data: dict[str, Any] | None = None,
        stage_name: str | None = None,
    ) -> None:
        """Tell of a checkpoint."""
        metadata = {
            "step": step,
            "completion_percentage": completion_percentage,
            "model_checkpoint_names": model_checkpoint_names or {},
            "user_data": user_data,
            "stage_name": stage_name,
        }
        self._control_plane.report_checkpoint(self.job_id, checkpoint_id, metadata)

    def mark_running(self) -> None:
        """Tell that the recipe begins."""
        self._control_plane.mark_running(self.job_id)

    def complete(self) -> None:
        """Upload pending artifacts, tell that the job succeeded, and end the heartbeat."""
        self.finalize_pending_artifacts()
        self._control_plane.complete_job(self.job_id)
        self.stop_heartbeat()

    def report_error(self, error: str) -> None:
        """Tell that the job failed."""
        self._control_plane.report_error(self.job_id, error)

    def start_heartbeat(self, interval_seconds: float = _HEARTBEAT_S) -> None:
        """Begin to tell every so many seconds that the job is alive."""
        self._interval_s = interval_seconds
        self.heartbeat()

    def heartbeat(self) -> None:
        """Tell that the job is alive, at once and from now on."""
        self._control_plane.job_heartbeat(self.job_id, self._interval_s)

    def stop_heartbeat(self) -> None:
        """End the heartbeat."""
        self._control_plane.stop_heartbeat()

    def register_artifact(self, artifact: Artifact, session_id: str | None = None) -> None:
        """Tell of an artifact. ValueError for a dataset or an evaluation without an upload."""
        check_upload(artifact, session_id)
        self._control_plane.register_job_artifact(
            self.job_id,
            artifact.id,
            artifact.name,
            artifact.kind,
            str(artifact.processing_mode.value),
            dict(artifact.metadata),
            session_id,
        )

    def finalize_artifact(self, artifact: Artifact, file_path: str) -> None:
        """Upload the artifact's file and register it."""
        self.register_artifact(artifact, self._control_plane.upload_file(file_path, _content_type(file_path)))

    def _check_stage(self, stage: str) -> None:
        if stage not in self.stages:
            known = ", ".join(self.stages) or "none"
            raise UnknownStageError(
                f"stage {stage!r} was not registered (registered: {known}); name it in register_stages first"
            )


def _content_type(file_path: str) -> str:
    if Path(file_path).suffix == ".jsonl":
        return "application/jsonl"
    return mimetypes.guess_type(file_path)[0] or "application/octet-stream"
