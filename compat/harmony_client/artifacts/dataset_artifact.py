"""A dataset that a job made."""

from harmonia.client.artifacts import DatasetArtifact

__all__ = ["DatasetArtifact"]
