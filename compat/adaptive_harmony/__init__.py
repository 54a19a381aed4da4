"""Threads, models, clients and what trains them under the import name that recipes use."""

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
from harmonia.client.artifacts import CustomArtifact, DatasetArtifact, EvaluationArtifact
from harmonia.client.grades import EvalSample, EvalSampleInteraction, Grade
from harmonia.client.recipe import JobNotifier, StageNotifier, StdoutJobNotifier, StdoutStageNotifier
from harmonia.trainers import (
    CombinedSchedule,
    CosineScheduler,
    CosineSchedulerWithoutWarmup,
    DataSet,
    Logger,
    Scheduler,
)
from harmonia.trainers.metric_loggers import WandbLogger

__all__ = [
    "CombinedSchedule",
    "CosineScheduler",
    "CosineSchedulerWithoutWarmup",
    "CustomArtifact",
    "DataSet",
    "DatasetArtifact",
    "EvalSample",
    "EvalSampleInteraction",
    "EvaluationArtifact",
    "Grade",
    "HarmonyClient",
    "InferenceModel",
    "JobNotifier",
    "Logger",
    "ModelBuilder",
    "Scheduler",
    "StageNotifier",
    "StdoutJobNotifier",
    "StdoutStageNotifier",
    "StringThread",
    "StringTurn",
    "TokenizedThread",
    "Tool",
    "TrainingModel",
    "WandbLogger",
    "get_client",
]
