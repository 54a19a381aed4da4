"""The order in which samples are taken."""

from harmonia.trainers import DataSet

__all__ = ["DataSet"]
