"""Supervised fine-tuning: imitate the weighted turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harmonia.client import StringThread, TrainingModel
from harmonia.client.recipe.current import default_restore_data, default_stage
from harmonia.client.recipe.notifiers import StageNotifier
from harmonia.trainers.callbacks import RecipeCallback
from harmonia.trainers.checkpointing import CheckpointManager, SFTCheckpointData
from harmonia.trainers.dataset import DataSet
from harmonia.trainers.loop import Metrics, TrainingLoop
from harmonia.trainers.metric_loggers.base import Logger
from harmonia.trainers.metric_loggers.production import default_logger
from harmonia.trainers.records import hash_hyperparams, log_args
from harmonia.trainers.resumable import ResumableTrainer
from harmonia.trainers.samples import check_threads, warn_of_weights
from harmonia.trainers.schedules import CosineScheduler, Scheduler
from harmonia.trainers.tangents import train_sft_tangents

SFT_HYPERPARAMS = {
    "lr",
    "lr_scheduler",
    "samples_per_batch",
    "max_grad_norm",
    "epochs",
    "weight_decay",
    "skip_nan_gradients",
    "data_seed",
    "use_tangents",
}
"""What must be the same for a checkpoint to be resumed."""


@log_args
@hash_hyperparams(SFT_HYPERPARAMS)
@dataclass(eq=False, repr=False)
class SFT(ResumableTrainer):
    """Trains `model` on the weighted turns of threads: `await SFT(threads, model).run()`.

    Each step takes `samples_per_batch` threads, in an order that `data_seed` decides. Threads that the model refuses
    are left out, counted and reported. RuntimeError when too many are.
    """

    dataset: list[StringThread]
    model: TrainingModel
    logger: Logger = field(default_factory=default_logger)
    stage_notifier: StageNotifier = field(default_factory=lambda: default_stage("SFT Training"))
    callbacks: Sequence[RecipeCallback] = ()
    lr: float = 1e-5
    lr_scheduler: Scheduler | None = None
    """Learning rate by the share that is done; None is `CosineScheduler(lr)`."""
    samples_per_batch: int = 512
    max_grad_norm: float = 1.0
    epochs: int = 1
    """How often each thread is seen; with a value other than 1 the last batch may reach into the next epoch."""
    weight_decay: float = 0
    skip_nan_gradients: bool = False
    """Leave out a step whose gradient is not finite, instead of raising."""
    checkpoint_restore_data: dict[str, Any] | None = None
    """What a checkpoint reported, to go on from there; in a recipe, by default what its job resumes from."""
    checkpoint_frequency: float = 0.2
    data_seed: int = 42
    use_tangents: bool = False
    """Compute the loss here, which logs `policy/loss` and `policy/num_tokens`; the gradient is the same."""

    hyperparams_hash: str = field(init=False)

    def __post_init__(self) -> None:
        check_threads(self.dataset)
        self._loop = TrainingLoop(
            dataset=DataSet(self.dataset, allow_looping=self.epochs != 1, seed=self.data_seed),
            model=self.model,
            logger=self.logger,
            stage_notifier=self.stage_notifier,
            callbacks=self.callbacks,
            schedule=self.lr_scheduler or CosineScheduler(self.lr),
            samples_per_batch=self.samples_per_batch,
            max_grad_norm=self.max_grad_norm,
            epochs=self.epochs,
            skip_nan_gradients=self.skip_nan_gradients,
            weight_decay=self.weight_decay,
            combine=per_token,
        )
        self._checkpoints = CheckpointManager(
            recipe_name="SFT",
            dataset=self._loop.dataset,
            threads_dataset=self.dataset,
            callbacks=self.callbacks,
            hyperparams_hash=self.hyperparams_hash,
            stage_notifier=self.stage_notifier,
            checkpoint_data_cls=SFTCheckpointData,
            checkpoint_frequency=self.checkpoint_frequency,
            checkpoint_restore_data=self.checkpoint_restore_data or default_restore_data(),
            logger=self.logger,
        )
        self._checkpoints.register_model(self.model, "model_checkpoint_name")
        warn_of_weights(self.dataset)

    async def train_sample(self, thread: StringThread) -> Metrics | None:
        """Add the gradient of one thread."""
        if self.use_tangents:
            return await train_sft_tangents(self.model, thread)
        await self.model.train_language_modelling(thread)
        return None


def per_token(records: Sequence[Metrics]) -> Metrics:
    """Of a batch: `policy/num_tokens` of all samples, and `policy/loss` per token."""
    if not records:
        return {}
    num_tokens = sum(record["policy/num_tokens"] for record in records)
    loss = sum(record["policy/loss"] * record["policy/num_tokens"] for record in records)
    return {"policy/loss": loss / num_tokens, "policy/num_tokens": num_tokens}
