"""Saves a model and registers it with the job."""

from harmonia.client.artifacts import ModelArtifact, save_with_artifact

__all__ = ["ModelArtifact", "save_with_artifact"]
