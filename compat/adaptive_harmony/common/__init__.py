"""Training classes and their callbacks."""

from harmonia.trainers import (
    DPO,
    SFT,
    GenerateSamplesCallback,
    GraderEvalCallback,
    RecipeCallback,
    RewardModelling,
    ValidationLossCallback,
)
from harmonia.trainers.callbacks import CheckpointCallback

__all__ = [
    "DPO",
    "SFT",
    "CheckpointCallback",
    "GenerateSamplesCallback",
    "GraderEvalCallback",
    "RecipeCallback",
    "RewardModelling",
    "ValidationLossCallback",
]
