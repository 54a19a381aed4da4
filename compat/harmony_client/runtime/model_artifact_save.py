"""Saves a model and registers it with the job."""

from harmonia.client.artifacts import save_with_artifact

__all__ = ["save_with_artifact"]
