"""Threads, models and clients under the import name that recipes use."""

from harmonia.client import (
    HarmonyClient,
    InferenceModel,
    ModelBuilder,
    StringThread,
    StringTurn,
    TokenizedThread,
    Tool,
    TrainingModel,
    get_client,
)
from harmonia.client.artifacts import EvaluationArtifactBase
from harmonia.client.grades import EvalSample, EvalSampleInteraction, Grade
from harmonia.client.recipe import ControlPlaneJobNotifier, ControlPlaneStageNotifier
from harmony_client import harmony_client, parameters, runtime

__all__ = [
    "ControlPlaneJobNotifier",
    "ControlPlaneStageNotifier",
    "EvalSample",
    "EvalSampleInteraction",
    "EvaluationArtifactBase",
    "Grade",
    "HarmonyClient",
    "InferenceModel",
    "ModelBuilder",
    "StringThread",
    "StringTurn",
    "TokenizedThread",
    "Tool",
    "TrainingModel",
    "get_client",
    "harmony_client",
    "parameters",
    "runtime",
]
