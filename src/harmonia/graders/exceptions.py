"""What graders raise."""

from __future__ import annotations

from harmonia.errors import HarmoniaError


class IgnoreGradeException(HarmoniaError):
    """This conversation cannot be graded and should not count, rather than count as zero; the message says why."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or "this conversation is not to be graded")
