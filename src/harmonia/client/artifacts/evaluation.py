"""Evaluations that a job makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from harmonia.client.artifacts.base import ArtifactContext, ArtifactError, BaseArtifact, json_line, new_file
from harmonia.client.grades import EvalSample
from harmonia.client.identifiers import uuid_v7


class EvaluationArtifactBase:
    """An evaluation by name, address and id; further arguments are ignored."""

    kind = "eval"

    def __init__(self, name: str, uri: str, id: str, **_: Any) -> None:
        self.name = name
        self.uri = uri
        self.id = id

    def samples_to_adaptive_json(self, samples: Sequence[EvalSample]) -> list[str]:
        """Each sample as a line of JSON, as the control plane stores it."""
        return [json_line(sample.to_adaptive_dict()).decode() for sample in samples]


class EvaluationArtifact(BaseArtifact):
    """Graded conversations."""

    def __init__(self, name: str, ctx: ArtifactContext) -> None:
        id = uuid_v7()
        self._count = 0
        path = new_file(ctx, id, "evaluation.jsonl")
        super().__init__(ctx, id, name, EvaluationArtifactBase.kind, str(path))

    @property
    def file_path(self) -> str:
        """Where the samples are, one per line."""
        return self._file_path or ""

    @property
    def sample_count(self) -> int:
        """The number of samples."""
        return self._count

    def add_samples(self, samples: Sequence[EvalSample]) -> Self:
        """Append samples. ArtifactError, a ValueError, for none at all."""
        if not samples:
            raise ArtifactError(f"evaluation '{self.name}' was given no samples; grade at least one conversation")
        self._append_rows(sample.to_adaptive_dict() for sample in samples)
        self._count += len(samples)
        return self
