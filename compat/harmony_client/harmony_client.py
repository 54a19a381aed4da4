"""The names of the compiled module: threads, models, clients, grades, and the base of all errors."""

from harmonia.client import (
    HarmonyClient,
    InferenceModel,
    ModelBuilder,
    StringThread,
    Timings,
    TokenizedThread,
    Tool,
    TrainingModel,
    get_client,
)
from harmonia.client.artifacts import EvaluationArtifactBase
from harmonia.client.builder import MAX_DRAFT_STEPS as DEFAULT_MAX_DRAFT_STEPS
from harmonia.client.grades import EvalSample, EvalSampleInteraction, Grade
from harmonia.errors import HarmoniaError as HarmonyError
from harmony_client import utils

__all__ = [
    "DEFAULT_MAX_DRAFT_STEPS",
    "EvalSample",
    "EvalSampleInteraction",
    "EvaluationArtifactBase",
    "Grade",
    "HarmonyClient",
    "HarmonyError",
    "InferenceModel",
    "ModelBuilder",
    "StringThread",
    "Timings",
    "TokenizedThread",
    "Tool",
    "TrainingModel",
    "get_client",
    "utils",
]
