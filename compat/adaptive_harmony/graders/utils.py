"""What judges share."""

from harmonia.graders import FailedJudgeLog, SuccessJudgeLog, sample_score_distribution
from harmonia.graders.turns import separate_context_from_last_user_turn, validate_thread_last_assistant

__all__ = [
    "FailedJudgeLog",
    "SuccessJudgeLog",
    "sample_score_distribution",
    "separate_context_from_last_user_turn",
    "validate_thread_last_assistant",
]
