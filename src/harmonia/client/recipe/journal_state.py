"""What a job's folder holds, and reading it: `job.json` is the state, `metrics.jsonl` a record of metrics per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from harmonia.errors import InvalidRequestError

STATE_FILE, METRICS_FILE, ARTIFACTS, CHECKPOINTS = "job.json", "metrics.jsonl", "artifacts", "checkpoints"

State = Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELED"]


class StageState(msgspec.Struct, frozen=True, kw_only=True):
    """One stage; None stands for what nobody has told."""

    name: str
    total: int | None = None
    """Samples to process."""
    processed: int | None = None
    """Samples processed."""
    monitoring_link: str | None = None
    checkpoints: tuple[str, ...] = ()


class JobError(msgspec.Struct, frozen=True):
    """Why a job failed."""

    message: str
    """The traceback's last line."""
    traceback: str


class ArtifactState(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the job made."""

    id: str
    name: str
    kind: str
    file: str | None = None
    """Relative to the job's folder."""
    metadata: dict[str, Any] = {}


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True):
    """A point from which the job can be resumed."""

    id: str
    step: int
    completion_percentage: float
    """0 to 100."""
    models: dict[str, str] = {}
    """The name under which each model was saved."""
    stage: str | None = None
    file: str | None = None
    """What a resumed run needs, relative to the job's folder."""


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """A job. Times are ISO 8601 in UTC."""

    job_id: str
    state: State = "PENDING"
    recipe: str = ""
    config: dict[str, Any] = {}
    stages: tuple[StageState, ...] = ()
    """In the order in which they run."""
    error: JobError | None = None
    monitoring_link: str | None = None
    artifacts: tuple[ArtifactState, ...] = ()
    checkpoints: tuple[CheckpointState, ...] = ()
    """Oldest first."""
    started_at: str | None = None
    ended_at: str | None = None

    def stage(self, name: str) -> StageState:
        """The stage of that name, empty if nobody has told of it."""
        return next((stage for stage in self.stages if stage.name == name), StageState(name=name))


class MetricsRecord(msgspec.Struct, frozen=True):
    """What a metric logger was told at one time."""

    at: str
    """ISO 8601 in UTC."""
    stage: str
    metrics: dict[str, Any]
    """Numbers (null where one was not finite), text, and tables as {"headers": [...], "rows": [...]}."""


def read_journal(folder: Path) -> JobState:
    """The state of the job in a folder. InvalidRequestError if there is none."""
    file = folder / STATE_FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=JobState)
    except FileNotFoundError as error:
        raise InvalidRequestError(f"{folder} is no folder of a job: it has no {STATE_FILE}") from error
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidRequestError(f"{file} cannot be read: {error}") from error


def read_metrics(folder: Path) -> list[MetricsRecord]:
    """All metrics of the job in a folder, oldest first; a line that a crash has torn is left out."""
    file = folder / METRICS_FILE
    if not file.exists():
        return []
    try:
        whole = file.read_bytes()
        return msgspec.json.Decoder(MetricsRecord).decode_lines(whole[: whole.rfind(b"\n") + 1])
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidRequestError(f"{file} cannot be read: {error}") from error


def read_restore_data(folder: Path) -> dict[str, Any] | None:
    """What `RecipeContext.checkpoint_restore_data` was at the newest checkpoint of a job; None without a checkpoint."""
    files = [checkpoint.file for checkpoint in read_journal(folder).checkpoints if checkpoint.file]
    if not files:
        return None
    file = folder / files[-1]
    try:
        user_data = json.loads(file.read_bytes())
        return restore_data(user_data)
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"checkpoint {file} cannot be read: {error}") from error


def restore_data(user_data: dict[str, Any] | None) -> dict[str, Any] | None:
    """The trainers' state inside a checkpoint's `user_data`: JSON text under "checkpoint_json"."""
    text = (user_data or {}).get("checkpoint_json")
    data: dict[str, Any] | None = None if text is None else json.loads(text)
    return data
