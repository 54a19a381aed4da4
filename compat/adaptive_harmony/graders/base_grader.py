"""The base of all graders."""

from harmonia.graders import BaseGrader

__all__ = ["BaseGrader"]
