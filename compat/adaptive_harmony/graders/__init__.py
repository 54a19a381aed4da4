"""What gives an answer its grade."""

from harmonia.graders import BaseGrader, Grade, IgnoreGradeException
from harmonia.graders.judges import BinaryJudgeGrader

__all__ = ["BaseGrader", "BinaryJudgeGrader", "Grade", "IgnoreGradeException"]
