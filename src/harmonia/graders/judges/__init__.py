"""Graders that ask a model."""

from harmonia.graders.judges.binary import BinaryJudgeGrader, BinaryJudgeOutput, BinaryJudgeShot

__all__ = ["BinaryJudgeGrader", "BinaryJudgeOutput", "BinaryJudgeShot"]
