"""What the rows of a dataset hold: `Dataset[Prompt]`."""

from harmonia.client.parameters.dataset_kinds import (
    Completion,
    DatasetKind,
    DatasetMetricSample,
    DatasetPreferenceSample,
    DatasetPromptSample,
    DatasetSample,
    DtoBaseModel,
    Metric,
    Preference,
    Prompt,
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
