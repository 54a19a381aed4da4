"""Graders that ask a model."""

from harmonia.graders.judges.binary import BinaryJudgeGrader, BinaryJudgeOutput, BinaryJudgeShot
from harmonia.graders.judges.templated import JudgeTemplates, TemplatedPromptJudgeGrader

__all__ = [
    "BinaryJudgeGrader",
    "BinaryJudgeOutput",
    "BinaryJudgeShot",
    "JudgeTemplates",
    "TemplatedPromptJudgeGrader",
]
