"""A grader as the platform describes it."""

from harmonia.client.data import (
    AdaptiveGrader,
    ChatMessage,
    Custom,
    Function,
    Judge,
    JudgeExample,
    Prebuilt,
    PrebuiltConfigKey,
    Remote,
)

__all__ = [
    "AdaptiveGrader",
    "ChatMessage",
    "Custom",
    "Function",
    "Judge",
    "JudgeExample",
    "Prebuilt",
    "PrebuiltConfigKey",
    "Remote",
]
