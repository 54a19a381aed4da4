"""A file of any kind."""

from harmonia.client.artifacts import CustomArtifact

__all__ = ["CustomArtifact"]
