"""Direct preference optimisation."""

from harmonia.trainers import DPO

__all__ = ["DPO"]
