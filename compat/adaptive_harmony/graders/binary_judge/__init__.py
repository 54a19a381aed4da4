"""A judge that says pass or fail."""

from harmonia.graders.judges import BinaryJudgeGrader, BinaryJudgeOutput, BinaryJudgeShot

__all__ = ["BinaryJudgeGrader", "BinaryJudgeOutput", "BinaryJudgeShot"]
