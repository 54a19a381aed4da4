"""Files and models that a job leaves behind."""

from harmonia.client.artifacts import CustomArtifact, DatasetArtifact, EvaluationArtifact, ModelArtifact

__all__ = ["CustomArtifact", "DatasetArtifact", "EvaluationArtifact", "ModelArtifact"]
