"""A model that a job saved."""

from harmonia.client.artifacts import ModelArtifact

__all__ = ["ModelArtifact"]
