"""What a judge is shown."""

from harmonia.graders.judges import BinaryJudgeShot

__all__ = ["BinaryJudgeShot"]
