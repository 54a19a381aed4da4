"""Saving and resuming a training run."""

from harmonia.trainers import CheckpointManager
from harmonia.trainers.checkpoint_data import BaseCheckpointData, SFTCheckpointData, StageCheckpoint

__all__ = ["BaseCheckpointData", "CheckpointManager", "SFTCheckpointData", "StageCheckpoint"]
