"""Graded samples."""

from harmonia.client.artifacts import EvaluationArtifact

__all__ = ["EvaluationArtifact"]
