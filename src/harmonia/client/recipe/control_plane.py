"""What a recipe asks of the control plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from harmonia.client.recipe.grader_records import Verdict


class ModelSettings(Protocol):
    """The inference settings of a model, as its project keeps them."""

    model_id: str
    model_key: str
    harmony_url: str
    """The address of its weights, such as `model_registry://key`."""
    tp: int | None
    kv_cache_len: int | None
    max_seq_len: int | None
    tokens_to_generate: int | None
    extra_params: str | None
    """A JSON object."""


class DatasetSettings(Protocol):
    """What is known of a dataset."""

    dataset_id: str
    dataset_key: str
    name: str
    file_path: str
    kind: str


class ControlPlane(Protocol):
    """The control plane, as recipes and notifiers use it: the `get_*_config` are async, everything else blocks."""

    async def get_model_config(self, model_key: str) -> ModelSettings:
        """The settings of a model."""

    async def get_dataset_config(self, dataset_key: str) -> DatasetSettings:
        """What is known of a dataset."""

    async def get_grader_config(self, grader_key: str) -> Any:
        """An `AdaptiveGrader`."""

    async def grade(self, grader_key: str, threads: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """What a grader that runs there makes of conversations with `messages` and `metadata`, in their order."""

    def download_dataset(self, dataset_key: str, file_path: str) -> None:
        """Write a dataset to a file."""

    def get_recipe_download_url(self, recipe_key: str) -> str:
        """Where the zip of a recipe can be downloaded."""

    def download_file(self, url: str, file_path: str) -> None:
        """Write what is at an address of the control plane to a file."""

    def upload_file(self, file_path: str, content_type: str) -> str:
        """Upload a file; the id of the upload session."""

    def get_checkpoint_metadata(self, artifact_id: str) -> Mapping[str, Any]:
        """The fields of a checkpoint's `CheckpointArtifactMetadata`."""

    def mark_running(self, job_id: str) -> None:
        """The job began."""

    def register_job_stages(self, job_id: str, stages: Sequence[tuple[str, int, str | None]]) -> None:
        """The stages of a job, each with its place from 0 and the one before it."""

    def update_job_progress(
        self,
        job_id: str,
        stage: str,
        tot_num_samples: int | None,
        processed_num_samples: int | None,
        monitoring_link: str | None,
        checkpoints: Sequence[str] | None,
    ) -> None:
        """How far a stage is."""

    def set_monitoring_link(self, job_id: str, monitoring_link: str) -> None:
        """Where the job's curves can be seen."""

    def report_checkpoint(self, job_id: str, checkpoint_id: str, metadata: Mapping[str, Any]) -> None:
        """A checkpoint was made; the fields of `CheckpointArtifactMetadata`, and `stage_name`."""

    def register_job_artifact(
        self,
        job_id: str,
        artifact_id: str,
        name: str,
        kind: str,
        processing_mode: str,
        metadata: Mapping[str, Any],
        session_id: str | None,
    ) -> None:
        """The job made an artifact."""

    def report_error(self, job_id: str, error: str) -> None:
        """The job failed."""

    def complete_job(self, job_id: str) -> None:
        """The job succeeded."""

    def job_heartbeat(self, job_id: str, interval_seconds: float) -> None:
        """Begin to report in the background that the job is alive, in place of what an earlier call began."""

    def stop_heartbeat(self) -> None:
        """End the background reports; nothing happens if there are none."""
