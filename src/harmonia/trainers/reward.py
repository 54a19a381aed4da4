"""Reward modelling: a scoring model learns which conversations are better, or how good each one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harmonia.client import StringThread, TrainingModel
from harmonia.client.recipe.current import default_stage
from harmonia.client.recipe.notifiers import StageNotifier
from harmonia.errors import InvalidRequestError
from harmonia.trainers.callbacks import RecipeCallback
from harmonia.trainers.dataset import DataSet
from harmonia.trainers.loop import TrainingLoop
from harmonia.trainers.metric_loggers.base import Logger
from harmonia.trainers.metric_loggers.production import default_logger
from harmonia.trainers.records import log_args
from harmonia.trainers.samples import Pair, as_pair, check_turns, reward_of
from harmonia.trainers.schedules import CosineScheduler, Scheduler


@log_args
@dataclass(eq=False, repr=False)
class RewardModelling:
    """Trains a scoring model, built with `into_scoring_model()`: `await RewardModelling(samples, model).run()`.

    A pair (preferred thread, rejected thread) teaches which of them scores higher, a single thread that its score is
    its `metadata["res"]`. Scores are read at the last token. Samples that the model refuses are left out, counted and
    reported. RuntimeError when too many are.
    """

    dataset: list[Pair] | list[StringThread]
    model: TrainingModel
    logger: Logger = field(default_factory=default_logger)
    job_notifier: StageNotifier = field(default_factory=lambda: default_stage("Reward Model Training"))
    """A notifier of a stage, in spite of its name."""
    callbacks: Sequence[RecipeCallback] = ()
    lr: float = 1e-6
    lr_scheduler: Scheduler | None = None
    """Learning rate by the share that is done; None is `CosineScheduler(lr)`."""
    samples_per_batch: int = 64
    max_grad_norm: float = 1.0
    epochs: int = 1
    """How often each sample is seen; the last batch may reach into the next epoch."""
    skip_nan_gradients: bool = False
    """Leave out a step whose gradient is not finite, instead of raising."""
    data_seed: int = 42

    def __post_init__(self) -> None:
        for index, sample in enumerate(self.dataset):
            _check(sample, index)
        if not self.model.is_scalar():
            raise InvalidRequestError(
                "a reward model needs a scoring head; build the model with into_scoring_model()", field="model"
            )
        self._loop = TrainingLoop[Any](
            dataset=DataSet(self.dataset, allow_looping=True, seed=self.data_seed),
            model=self.model,
            logger=self.logger,
            stage_notifier=self.job_notifier,
            callbacks=self.callbacks,
            schedule=self.lr_scheduler or CosineScheduler(self.lr),
            samples_per_batch=self.samples_per_batch,
            max_grad_norm=self.max_grad_norm,
            epochs=self.epochs,
            skip_nan_gradients=self.skip_nan_gradients,
        )

    @property
    def training_completion_percentage(self) -> float:
        """The share that is done, 0 to 1."""
        return self._loop.completion_percentage

    async def run(self) -> None:
        """Train."""
        await self._loop.begin()
        while not self._loop.is_done:
            await self._loop.step(self.train_rm)
        self._loop.end()

    async def train_rm(self, sample: Pair | StringThread) -> None:
        """Add the gradient of one sample."""
        if isinstance(sample, StringThread):
            await self.model.train_mse(sample, reward_of(sample, "the sample"))
        else:
            preferred, rejected = sample
            await self.model.train_ranking(preferred, rejected)


def _check(sample: Any, index: int) -> None:
    if isinstance(sample, StringThread):
        check_turns(sample, f"sample {index}")
        return
    for side, thread in zip(("preferred", "rejected"), as_pair(sample, index), strict=True):
        check_turns(thread, f"the {side} side of sample {index}")
