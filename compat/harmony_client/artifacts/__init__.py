"""Files and models that a job leaves behind."""

from harmonia.client.artifacts import (
    ArtifactProcessingMode,
    BaseArtifact,
    CustomArtifact,
    DatasetArtifact,
    DatasetSampleType,
    EvaluationArtifact,
    ModelArtifact,
)

__all__ = [
    "ArtifactProcessingMode",
    "BaseArtifact",
    "CustomArtifact",
    "DatasetArtifact",
    "DatasetSampleType",
    "EvaluationArtifact",
    "ModelArtifact",
]
