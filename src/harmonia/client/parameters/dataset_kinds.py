"""Kinds of data sets, as in `Dataset[Prompt]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harmonia.client.data.formats import (
    ALL_FORMATS,
    AdaptiveDatasetKind,
    DatasetMetricSample,
    DatasetPreferenceSample,
    DatasetPromptSample,
    DatasetSample,
    DatasetSampleType,
    DtoBaseModel,
    parse_sample,
)

__all__ = [
    "Completion",
    "DatasetKind",
    "DatasetMetricSample",
    "DatasetPreferenceSample",
    "DatasetPromptSample",
    "DatasetSample",
    "DtoBaseModel",
    "Metric",
    "Preference",
    "Prompt",
]


class DatasetKind:
    """What the internal rows of a data set hold: any of `formats`, of which the first that fits counts."""

    def __init__(self, kind: str, formats: Sequence[type[DatasetSampleType]] = ALL_FORMATS) -> None:
        self.kind = kind
        self.formats = list(formats)

    def parse(self, line: dict[str, Any]) -> DatasetSampleType:
        """The row in its format; InvalidRequestError names what is missing or wrong."""
        return parse_sample(line, self.formats)


class Prompt(DatasetKind):
    """Conversations to answer; answers that the rows have are left out."""

    def __init__(self) -> None:
        super().__init__(AdaptiveDatasetKind.Prompt.value, [DatasetPromptSample])


class Completion(DatasetKind):
    """Conversations with answers."""

    def __init__(self) -> None:
        super().__init__(AdaptiveDatasetKind.Completion.value, [DatasetSample])


class Metric(DatasetKind):
    """Conversations with answers and what those were found to be worth."""

    def __init__(self) -> None:
        super().__init__(AdaptiveDatasetKind.Metric.value, [DatasetMetricSample])


class Preference(DatasetKind):
    """Conversations with a better and a worse answer."""

    def __init__(self) -> None:
        super().__init__(AdaptiveDatasetKind.Preference.value, [DatasetPreferenceSample])
