"""Reward models."""

from harmonia.trainers import RewardModelling

__all__ = ["RewardModelling"]
