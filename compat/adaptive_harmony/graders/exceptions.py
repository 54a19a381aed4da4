"""How a grader says that a sample does not count."""

from harmonia.graders import IgnoreGradeException

__all__ = ["IgnoreGradeException"]
