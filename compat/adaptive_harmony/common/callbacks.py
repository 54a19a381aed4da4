"""What runs now and then during training."""

from harmonia.trainers import (
    GenerateSamplesCallback,
    GraderEvalCallback,
    RecipeCallback,
    ValidationLossCallback,
    invoke_callbacks,
)
from harmonia.trainers.callbacks import CheckpointCallback

__all__ = [
    "CheckpointCallback",
    "GenerateSamplesCallback",
    "GraderEvalCallback",
    "RecipeCallback",
    "ValidationLossCallback",
    "invoke_callbacks",
]
