"""Rows of datasets."""

from harmonia.client.data import (
    DatasetMetricSample,
    DatasetPreferenceSample,
    DatasetPromptSample,
    DatasetSample,
    SampleMetadata,
    TurnTuple,
)

__all__ = [
    "DatasetMetricSample",
    "DatasetPreferenceSample",
    "DatasetPromptSample",
    "DatasetSample",
    "SampleMetadata",
    "TurnTuple",
]
