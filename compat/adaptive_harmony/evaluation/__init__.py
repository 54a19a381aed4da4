"""Evaluations that a job leaves behind."""

from harmonia.client.artifacts import EvaluationArtifact

__all__ = ["EvaluationArtifact"]
