"""Trainers of one model that go on where a checkpoint stopped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from harmonia.client import TrainingModel
from harmonia.protocol.instances import SCHEME
from harmonia.trainers.checkpointing import CheckpointManager, SFTCheckpointData
from harmonia.trainers.loop import Metrics, TrainingLoop


class ResumableTrainer(ABC):
    """Sample after sample through a loop, with checkpoints of the model and its optimizer on the way."""

    model: TrainingModel
    _loop: TrainingLoop[Any]
    _checkpoints: CheckpointManager[SFTCheckpointData]

    @property
    def training_completion_percentage(self) -> float:
        """The share that is done, 0 to 1."""
        return self._loop.completion_percentage

    async def run(self) -> None:
        """Train; of a run that is resumed, what is left."""
        if self._checkpoints.should_skip():
            return
        await self._checkpoints.restore_checkpoint_data(self._load)
        await self._loop.begin()
        while not self._loop.is_done:
            await self._loop.step(self.train_sample)
            if await self._checkpoints.maybe_checkpoint(self.training_completion_percentage, self._save):
                break
        self._loop.end()

    @abstractmethod
    async def train_sample(self, sample: Any) -> Metrics | None:
        """Add the gradient of one sample. Returns what is to be logged of it, if anything."""

    async def _save(self) -> dict[str, Any]:
        name = self._checkpoints.model_name(self.training_completion_percentage)
        key = await self.model.save(name, inference_only=False)
        return {"model_checkpoint_name": key, "optim_step": self.model.get_optim_step()}

    async def _load(self, checkpoint: SFTCheckpointData) -> None:
        await self.model.load(f"{SCHEME}{checkpoint.model_checkpoint_name}")
        self.model.set_optim_step(checkpoint.optim_step)
