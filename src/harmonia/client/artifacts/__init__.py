"""What a job leaves behind: files, data sets, evaluations and models, registered with the job."""

from harmonia.client.artifacts.base import ArtifactContext, ArtifactProcessingMode, BaseArtifact
from harmonia.client.artifacts.custom import CustomArtifact
from harmonia.client.artifacts.dataset import DatasetArtifact
from harmonia.client.artifacts.evaluation import EvaluationArtifact, EvaluationArtifactBase
from harmonia.client.artifacts.model import ModelArtifact, save_with_artifact
from harmonia.client.data.formats import DatasetSampleType

__all__ = [
    "ArtifactContext",
    "ArtifactProcessingMode",
    "BaseArtifact",
    "CustomArtifact",
    "DatasetArtifact",
    "DatasetSampleType",
    "EvaluationArtifact",
    "EvaluationArtifactBase",
    "ModelArtifact",
    "save_with_artifact",
]
