"""Several graders as one."""

from harmonia.graders import CombinedGrader

__all__ = ["CombinedGrader"]
