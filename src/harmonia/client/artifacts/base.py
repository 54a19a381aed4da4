"""What all artifacts have in common."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from pydantic_core import to_json

from harmonia.errors import InvalidRequestError


class ArtifactProcessingMode(Enum):
    """When the control plane looks into an artifact."""

    ON_REGISTRATION = "on_registration"
    ON_COMPLETION = "on_completion"


class ArtifactError(InvalidRequestError, ValueError):
    """An artifact that cannot hold what it was given."""


class ArtifactJob(Protocol):
    """What an artifact needs of the job that makes it: `recipe.JobNotifier` has it."""

    def register_artifact(self, artifact: BaseArtifact) -> None:
        """Tell of an artifact without a file."""

    def add_pending_artifact(self, artifact: BaseArtifact, file_path: str) -> None:
        """Remember an artifact whose file still grows."""

    def finalize_artifact(self, artifact: BaseArtifact, file_path: str) -> None:
        """Hand over the file of an artifact."""

    def remove_pending_artifact(self, artifact_id: str) -> None:
        """Forget an artifact that was handed over."""


class ArtifactContext(Protocol):
    """What an artifact needs of a `RecipeContext`, which could not be named here without a circle of imports."""

    @property
    def job(self) -> ArtifactJob:
        """The job."""

    @property
    def artifacts_dir(self) -> Path:
        """The folder for the files of its artifacts."""


class BaseArtifact(ABC):  # noqa: B024 - nothing is left to implement, and a bare artifact means nothing
    """Something that a job made.

    One with a file is pending: the file may still grow until `finalize`, or else until the job ends, when it is handed
    over. One without is registered at once.
    """

    def __init__(
        self,
        ctx: ArtifactContext,
        id: str,
        name: str,
        kind: str,
        file_path: str | None = None,
        processing_mode: ArtifactProcessingMode = ArtifactProcessingMode.ON_COMPLETION,
        **metadata: Any,
    ) -> None:
        self._job = ctx.job
        self._id = id
        self._name = name
        self._kind = kind
        self._file_path = file_path
        self._processing_mode = processing_mode
        self._metadata = metadata
        self._is_final = file_path is None
        if file_path is None:
            self._job.register_artifact(self)
        else:
            self._job.add_pending_artifact(self, file_path)

    @property
    def id(self) -> str:
        """Unique among all artifacts."""
        return self._id

    @property
    def name(self) -> str:
        """What people call it."""
        return self._name

    @property
    def kind(self) -> str:
        """`model`, `dataset`, `eval` or `custom`."""
        return self._kind

    @property
    def metadata(self) -> dict[str, Any]:
        """What else is known of it."""
        return self._metadata

    @property
    def processing_mode(self) -> ArtifactProcessingMode:
        """When the control plane looks into it."""
        return self._processing_mode

    def finalize(self) -> None:
        """Hand the file over now; nothing may be added afterwards. Later calls do nothing."""
        if self._is_final or self._file_path is None:
            return
        self._job.finalize_artifact(self, self._file_path)
        self._job.remove_pending_artifact(self._id)
        self._is_final = True

    def _open_file(self) -> Path:
        """The file, to be written to. ArtifactError once it was handed over."""
        if self._is_final or self._file_path is None:
            raise ArtifactError(f"artifact '{self._name}' is finalized; make another one for more content")
        return Path(self._file_path)

    def _append_rows(self, rows: Iterable[Any]) -> None:
        """Append one line of JSON per row. Values that JSON does not have are written as `str` shows them."""
        lines = [json_line(row) + b"\n" for row in rows]
        with self._open_file().open("ab") as file:
            file.writelines(lines)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self._name!r}, id={self._id!r})"


def json_line(row: Any) -> bytes:
    """A row as one line of JSON; NaN and infinities become null."""
    return to_json(row, fallback=str, inf_nan_mode="null", bytes_mode="base64")


def new_file(ctx: ArtifactContext, artifact_id: str, name: str) -> Path:
    """An empty file of that name in a folder of the artifact's own. ArtifactError for a name that leads out of it."""
    folder = Path(ctx.artifacts_dir) / artifact_id
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()) or file == folder:
        raise ArtifactError(f"an artifact's file cannot be called {name!r}; give a file name")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file
