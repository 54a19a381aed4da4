"""A job that keeps a journal in a folder of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from harmonia.client.recipe.journal_state import (
    ARTIFACTS,
    CHECKPOINTS,
    METRICS_FILE,
    STATE_FILE,
    ArtifactState,
    CheckpointState,
    JobError,
    JobState,
    MetricsRecord,
    StageState,
    read_journal,
    read_metrics,
    read_restore_data,
)
from harmonia.client.recipe.notifiers import Artifact, ForwardingStage, JobNotifier, Metric, clamp_processed
from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger

__all__ = ["JobState", "JournalJobNotifier", "MetricsRecord", "read_journal", "read_metrics", "read_restore_data"]

log = get_logger(__name__)


class JournalJobNotifier(JobNotifier):
    """Keeps `folder` up to date: `job.json` (`JobState`), `metrics.jsonl`, `artifacts/` and `checkpoints/`.

    `job.json` is replaced as a whole at each change, so whoever reads it, even after a crash, finds one state or the
    next. `on_change` is called with each new state. A folder that has a journal is continued: what it holds stays.
    """

    def __init__(self, folder: Path, job_id: str, on_change: Callable[[JobState], None] | None = None) -> None:
        super().__init__(job_id)
        self.folder = folder
        self._on_change = on_change
        _make(folder)
        _drop_torn_line(folder / METRICS_FILE)
        before = read_journal(folder) if (folder / STATE_FILE).exists() else JobState(job_id=job_id)
        self.state = before
        """The newest state."""
        self.stages = [stage.name for stage in before.stages]
        self._update(job_id=job_id, state="PENDING", error=None, ended_at=None)

    # ---------------------------------------------------------------------------------------------- progress

    def register_stages(self, stages: Sequence[str]) -> None:
        """Name the stages of the job, in order; those that were known keep their progress."""
        self.stages = [str(stage) for stage in stages]
        self._update(stages=tuple(self.state.stage(name) for name in self.stages))

    def stage_notifier(self, stage: str) -> ForwardingStage:
        """The notifier of a stage; one that was not registered is added when it reports."""
        return ForwardingStage(self, stage)

    def report_progress(
        self,
        stage: str,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Sequence[str] | None = None,
    ) -> None:
        """Keep how far a stage is."""
        before = self.state.stage(stage)
        total = before.total if tot_num_samples is None else int(tot_num_samples)
        processed = before.processed if processed_num_samples is None else int(processed_num_samples)
        after = StageState(
            name=stage,
            total=total,
            processed=clamp_processed(stage, total, processed),
            monitoring_link=str(monitoring_link) if monitoring_link else before.monitoring_link,
            checkpoints=before.checkpoints if checkpoints is None else tuple(map(str, checkpoints)),
        )
        if stage not in self.stages:
            self.register_stages([*self.stages, stage])
        self._update(stages=tuple(after if known.name == stage else known for known in self.state.stages))

    def set_monitoring_link(self, monitoring_link: str) -> None:
        """Keep where the job's curves can be seen."""
        self._update(monitoring_link=str(monitoring_link))

    def report_checkpoint(
        self,
        checkpoint_id: str,
        step: int,
        completion_percentage: float,
        model_checkpoint_names: dict[str, str] | None = None,
        user_data: dict[str, Any] | None = None,
        stage_name: str | None = None,
    ) -> None:
        """Keep a checkpoint; what a resumed run needs lies in a file of its own, as it may be large."""
        file = None
        if user_data is not None:
            file = f"{CHECKPOINTS}/{_file_name(checkpoint_id)}.json"
            _write_whole(self.folder / file, _json(_plain(user_data)))
        checkpoint = CheckpointState(
            id=checkpoint_id,
            step=int(step),
            completion_percentage=float(completion_percentage),
            models=dict(model_checkpoint_names or {}),
            stage=stage_name,
            file=file,
        )
        self._update(checkpoints=(*self.state.checkpoints, checkpoint))

    def report_metrics(self, stage: str, metrics: Mapping[str, Metric]) -> None:
        """Append a record."""
        plain = {name: _plain(value) for name, value in metrics.items()}
        with (self.folder / METRICS_FILE).open("ab") as file:
            file.write(_json(MetricsRecord(_now(), stage, plain)) + b"\n")

    def describe(self, recipe: str, config: Mapping[str, Any]) -> None:
        """Keep what runs and with which input."""
        self._update(recipe=recipe, config=_plain(config))

    # ----------------------------------------------------------------------------------------------- life

    def mark_running(self) -> None:
        """RUNNING; a job that is continued keeps the time of its first start."""
        self._update(state="RUNNING", started_at=self.state.started_at or _now())

    def complete(self) -> None:
        """COMPLETED, with all artifacts in the folder."""
        self.finalize_pending_artifacts()
        self._update(state="COMPLETED", ended_at=_now())

    def report_error(self, error: str) -> None:
        """FAILED, with the traceback."""
        lines = error.strip().splitlines() or ["unknown error"]
        self._update(state="FAILED", error=JobError(lines[-1], error), ended_at=_now())

    def mark_canceled(self) -> None:
        """CANCELED."""
        self._update(state="CANCELED", ended_at=_now())

    # ------------------------------------------------------------------------------------------- artifacts

    def register_artifact(self, artifact: Artifact, session_id: str | None = None) -> None:
        """Keep an artifact; one that is registered again replaces itself. `session_id` is of no use here."""
        self._keep(artifact, None)

    def finalize_artifact(self, artifact: Artifact, file_path: str) -> None:
        """Copy the artifact's file into the folder and keep the artifact; one that never wrote a file is left out."""
        source = Path(file_path)
        if not source.exists():
            log.warning("%s '%s' has no file %s; nothing to keep", artifact.kind, artifact.name, file_path)
            return
        artifacts = self.folder / ARTIFACTS
        if not source.resolve().is_relative_to(artifacts.resolve()):
            name = f"{_file_name(artifact.name)}-{artifact.id[-8:]}{source.suffix}"
            source = _copy_whole(source, artifacts / name)
        self._keep(artifact, str(source.resolve().relative_to(self.folder.resolve())))

    def _keep(self, artifact: Artifact, file: str | None) -> None:
        kept = ArtifactState(
            id=artifact.id,
            name=artifact.name,
            kind=artifact.kind,
            file=file,
            metadata={name: _plain(value) for name, value in artifact.metadata.items()},
        )
        self._update(artifacts=(*(known for known in self.state.artifacts if known.id != artifact.id), kept))

    def _update(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        _write_whole(self.folder / STATE_FILE, msgspec.json.format(_json(self.state)))
        if self._on_change is not None:
            self._on_change(self.state)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _json(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # half a character, as in the name of a file that is not UTF-8
        return msgspec.json.encode(_plain(msgspec.to_builtins(value)))


def _plain(value: object) -> Any:
    """A value as JSON has it; numpy's numbers are numbers, and what JSON does not know becomes text."""
    match value:
        case None | bool():
            return value
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case Integral():
            return int(value)
        case Real():
            return float(value)
        case Table():
            headers, rows = value.export()
            return {"headers": headers, "rows": rows}
        case Mapping():
            return {_plain(str(key)): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
    return str(value)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f".{STATE_FILE}.part").touch()
    except OSError as error:
        raise InvalidRequestError(f"the job's folder {folder} cannot be written: {error.strerror}") from error


def _file_name(text: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in text)


def _write_whole(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    part.replace(file)


def _copy_whole(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    return part.replace(target)


def _drop_torn_line(file: Path) -> None:
    """Cut off the last line if a crash has left it without an end."""
    if not file.exists():
        return
    content = file.read_bytes()
    os.truncate(file, content.rfind(b"\n") + 1)
