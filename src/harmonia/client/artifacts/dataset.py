"""Data sets that a job makes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self
from uuid import uuid4

from harmonia.client.artifacts.base import ArtifactContext, ArtifactError, BaseArtifact, new_file
from harmonia.client.data.formats import (
    AdaptiveDatasetKind,
    DatasetMetricSample,
    DatasetPreferenceSample,
    DatasetPromptSample,
    DatasetSample,
    DatasetSampleType,
    SampleMetadata,
    TurnTuple,
)
from harmonia.client.identifiers import uuid_v7
from harmonia.threads import StringThread

_FORMATS: dict[AdaptiveDatasetKind, type[DatasetSampleType]] = {
    AdaptiveDatasetKind.Prompt: DatasetPromptSample,
    AdaptiveDatasetKind.Completion: DatasetSample,
    AdaptiveDatasetKind.Metric: DatasetMetricSample,
    AdaptiveDatasetKind.Preference: DatasetPreferenceSample,
}


class DatasetArtifact(BaseArtifact):
    """A data set of one kind, or of several (`Mixed`), which `Dataset` reads again.

    Every `add_` returns the artifact; ArtifactError, a ValueError, for samples that lack what the kind needs.
    """

    def __init__(self, name: str, ctx: ArtifactContext, kind: AdaptiveDatasetKind = AdaptiveDatasetKind.Mixed) -> None:
        id = uuid_v7()
        self._dataset_kind = kind
        self._count = 0
        path = new_file(ctx, id, "dataset.jsonl")
        super().__init__(ctx, id, name, "dataset", str(path), dataset_kind=kind.value)

    @property
    def artifact_kind(self) -> str:
        """`dataset`."""
        return self.kind

    @property
    def dataset_kind(self) -> AdaptiveDatasetKind:
        """What the rows hold."""
        return self._dataset_kind

    @property
    def file_path(self) -> str:
        """Where the rows are."""
        return self._file_path or ""

    @property
    def sample_count(self) -> int:
        """The number of rows."""
        return self._count

    def add_samples(self, samples: Sequence[DatasetSampleType]) -> Self:
        """Append rows."""
        for sample in samples:
            self._check(sample)
        self._append_rows(sample.model_dump(exclude_none=True) for sample in samples)
        self._count += len(samples)
        return self

    def add_prompt_items(self, items: list[DatasetPromptSample]) -> Self:
        """Append conversations to answer."""
        return self.add_samples(items)

    def add_completion_items(self, items: list[DatasetSample]) -> Self:
        """Append conversations with answers."""
        return self.add_samples(items)

    def add_metric_items(self, items: list[DatasetMetricSample]) -> Self:
        """Append conversations with answers and what those are worth."""
        return self.add_samples(items)

    def add_preference_items(self, items: list[DatasetPreferenceSample]) -> Self:
        """Append conversations with a better and a worse answer."""
        return self.add_samples(items)

    def add_samples_from_thread(self, threads: list[StringThread]) -> Self:
        """Append threads: one that ends with an assistant turn as a completion, another, or any in a Prompt set, as a
        prompt. Their metadata is kept as `external_data`. ArtifactError for kinds that threads cannot tell.
        """
        if self._dataset_kind in (AdaptiveDatasetKind.Metric, AdaptiveDatasetKind.Preference):
            raise ArtifactError(
                f"threads do not hold what a {self._dataset_kind.value} data set needs; use "
                f"add_{self._dataset_kind.value.lower()}_items"
            )
        return self.add_samples([self._sample(thread) for thread in threads])

    def _sample(self, thread: StringThread) -> DatasetSampleType:
        turns = [TurnTuple([role, _content(fragments)]) for role, fragments in thread.get_fragments()]
        if not turns:
            raise ArtifactError("a thread is empty; a data set needs at least one turn per row")
        metadata = SampleMetadata(id=uuid4(), created_at=int(time.time()), external_data=thread.metadata)
        *prompt, last = turns
        if last.root[0] != "assistant" or self._dataset_kind is AdaptiveDatasetKind.Prompt:
            return DatasetPromptSample(prompt=turns, metadata=metadata)
        return DatasetSample(prompt=prompt, completion=last, metadata=metadata)

    def _check(self, sample: DatasetSampleType) -> None:
        """A row may hold more than its kind needs, and never less."""
        if self._dataset_kind is AdaptiveDatasetKind.Mixed:
            return
        missing = _required(_FORMATS[self._dataset_kind]) - set(type(sample).model_fields)
        if missing:
            lacks = f"a {type(sample).__name__} lacks {', '.join(sorted(missing))}"
            raise ArtifactError(f"{lacks}, which a {self._dataset_kind.value} data set needs")


def _required(sample: type[DatasetSampleType]) -> set[str]:
    return {name for name, field in sample.model_fields.items() if field.is_required()}


def _content(fragments: list[dict[str, str]]) -> str | list[dict[str, Any]]:
    """A text where it says everything."""
    match fragments:
        case [{"type": "text", "text": text}]:
            return text
    return list(fragments)
