"""Scorers of conversations."""

from harmonia.client.grades import Grade
from harmonia.graders.base import BaseGrader, FunctionGrader
from harmonia.graders.combined import CombinedGrader
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.graders.logs import FailedJudgeLog, SuccessJudgeLog, sample_score_distribution
from harmonia.graders.parameter import Grader
from harmonia.graders.platform import PlatformGrader

__all__ = [
    "BaseGrader",
    "CombinedGrader",
    "FailedJudgeLog",
    "FunctionGrader",
    "Grade",
    "Grader",
    "IgnoreGradeException",
    "PlatformGrader",
    "SuccessJudgeLog",
    "sample_score_distribution",
]
