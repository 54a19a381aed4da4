"""Supervised fine-tuning."""

from harmonia.trainers import SFT
from harmonia.trainers.sft import SFT_HYPERPARAMS

__all__ = ["SFT", "SFT_HYPERPARAMS"]
