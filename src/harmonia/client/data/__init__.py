"""Data sets: the rows of their files, and reading those as threads."""

from harmonia.client.data.formats import (
    AdaptiveDatasetKind,
    DatasetMetricSample,
    DatasetPreferenceSample,
    DatasetPromptSample,
    DatasetSample,
    DatasetSampleType,
    DtoBaseModel,
    SampleMetadata,
    TurnTuple,
)
from harmonia.client.data.graders import (
    AdaptiveGrader,
    ChatMessage,
    Custom,
    Function,
    Judge,
    JudgeExample,
    Prebuilt,
    PrebuiltConfigKey,
    Remote,
)
from harmonia.client.data.reading import read_threads

__all__ = [
    "AdaptiveDatasetKind",
    "AdaptiveGrader",
    "ChatMessage",
    "Custom",
    "DatasetMetricSample",
    "DatasetPreferenceSample",
    "DatasetPromptSample",
    "DatasetSample",
    "DatasetSampleType",
    "DtoBaseModel",
    "Function",
    "Judge",
    "JudgeExample",
    "Prebuilt",
    "PrebuiltConfigKey",
    "Remote",
    "SampleMetadata",
    "TurnTuple",
    "read_threads",
]
