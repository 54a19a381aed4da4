"""What all artifacts share."""

from harmonia.client.artifacts import ArtifactProcessingMode, BaseArtifact

__all__ = ["ArtifactProcessingMode", "BaseArtifact"]
