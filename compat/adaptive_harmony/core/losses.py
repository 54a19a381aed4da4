"""Losses through `train_tangents`."""

from harmonia.trainers import grpo_loss, train_dpo_tangents, train_grpo_tangents, train_sft_tangents

__all__ = ["grpo_loss", "train_dpo_tangents", "train_grpo_tangents", "train_sft_tangents"]
