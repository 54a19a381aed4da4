"""A job that reports to standard output: what a recipe gets that runs by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from harmonia.client.recipe.notifiers import Artifact, ForwardingStage, JobNotifier, check_upload, clamp_processed


class StdoutStageNotifier(ForwardingStage):
    """Reports about one stage of a `StdoutJobNotifier`."""

    def __init__(self, notifier: StdoutJobNotifier, stage: str) -> None:
        super().__init__(notifier, stage)


class StdoutJobNotifier(JobNotifier):
    """Prints one line per report. Any stage name goes, registered or not. Files of artifacts stay where they are."""

    def register_stages(self, stages: Sequence[str]) -> None:
        """Print the stages."""
        self.stages = list(stages)
        self._say(f"stages: {', '.join(self.stages)}")

    def stage_notifier(self, stage: str) -> StdoutStageNotifier:
        """The notifier of a stage."""
        return StdoutStageNotifier(self, stage)

    def report_progress(
        self,
        stage: str,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Sequence[str] | None = None,
    ) -> None:
        """Print what is known of the stage's progress."""
        processed = clamp_processed(stage, tot_num_samples, processed_num_samples)
        said = []
        if processed is not None or tot_num_samples is not None:
            said.append(f"{_shown(processed)}/{_shown(tot_num_samples)} samples")
        if monitoring_link:
            said.append(f"curves at {monitoring_link}")
        if checkpoints:
            said.append(f"checkpoints {', '.join(checkpoints)}")
        if said:
            self._say(f"{stage}: {'; '.join(said)}")

    def set_monitoring_link(self, monitoring_link: str) -> None:
        """Print where curves can be seen."""
        self._say(f"curves at {monitoring_link}")

    def report_checkpoint(
        self,
        checkpoint_id: str,
        step: int,
        completion_percentage: float,
        model_checkpoint_names: dict[str, str] | None = None,
        user_data: dict[str, Any] | None = None,
        stage_name: str | None = None,
    ) -> None:
        """Print the names of the saved models."""
        names = ", ".join((model_checkpoint_names or {}).values()) or checkpoint_id
        stage = f"{stage_name}: " if stage_name else ""
        self._say(f"{stage}checkpoint at {completion_percentage:.0f} %, step {step}: {names}")

    def mark_running(self) -> None:
        """Print that the job begins."""
        self._say("running")

    def complete(self) -> None:
        """Print where the artifacts are, and that the job is complete."""
        self.finalize_pending_artifacts()
        self._say("complete")

    def report_error(self, error: str) -> None:
        """Print the traceback."""
        self._say(f"failed\n{error}")

    def mark_canceled(self) -> None:
        """Print that the job was canceled."""
        self._say("canceled")

    def register_artifact(self, artifact: Artifact, session_id: str | None = None) -> None:
        """Print the artifact's name. ValueError for a dataset or an evaluation without a file."""
        check_upload(artifact, session_id)
        self._say(f"{artifact.kind} '{artifact.name}'")

    def finalize_artifact(self, artifact: Artifact, file_path: str) -> None:
        """Print where the artifact's file is."""
        self._say(f"{artifact.kind} '{artifact.name}' in {file_path}")

    def _say(self, text: str) -> None:
        sys.stdout.write(f"[job {self.job_id}] {text}\n")
        sys.stdout.flush()


def _shown(count: int | None) -> str:
    return "?" if count is None else str(count)
