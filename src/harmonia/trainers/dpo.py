"""Direct preference optimisation: make preferred conversations likelier than rejected ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from harmonia.client import InferenceModel, TrainingModel
from harmonia.client.recipe.current import default_stage
from harmonia.client.recipe.notifiers import StageNotifier
from harmonia.errors import InvalidRequestError
from harmonia.trainers.callbacks import RecipeCallback
from harmonia.trainers.dataset import DataSet
from harmonia.trainers.loop import Metrics, TrainingLoop
from harmonia.trainers.metric_loggers.base import Logger
from harmonia.trainers.metric_loggers.production import default_logger
from harmonia.trainers.records import log_args
from harmonia.trainers.samples import Pair, check_pairs
from harmonia.trainers.schedules import CosineScheduler, Scheduler
from harmonia.trainers.tangents import train_dpo_tangents


@log_args
@dataclass(eq=False, repr=False)
class DPO:
    """Trains `model` on pairs of a preferred and a rejected thread: `await DPO(pairs, model).run()`.

    The weighted turns of both are compared, each with what the model made of them when `run` began. Pairs that the
    model refuses are left out, counted and reported. RuntimeError when too many are.
    """

    dataset: list[Pair]
    model: TrainingModel
    logger: Logger = field(default_factory=default_logger)
    stage_notifier: StageNotifier = field(default_factory=lambda: default_stage("DPO Training"))
    callbacks: Sequence[RecipeCallback] = ()
    lr: float = 1e-6
    lr_scheduler: Scheduler | None = None
    """Learning rate by the share that is done; None is `CosineScheduler(lr)`."""
    samples_per_batch: int = 32
    """Pairs per optimizer step."""
    max_grad_norm: float = 1.0
    kl_beta: float = 0.1
    """How strongly the model is held to where it began."""
    epochs: float = 1.0
    """How often each pair is seen; with a value above 1 the last batch may reach into the next epoch."""
    skip_nan_gradients: bool = False
    """Leave out a step whose gradient is not finite, instead of raising."""
    data_seed: int = 42
    use_tangents: bool = False
    """Compute the loss here, which logs `policy/` rewards; a pair then counts as two samples in the mean gradient."""

    def __post_init__(self) -> None:
        check_pairs(self.dataset)
        self._reference: InferenceModel | None = None
        self._loop = TrainingLoop(
            dataset=DataSet(self.dataset, allow_looping=self.epochs > 1, seed=self.data_seed),
            model=self.model,
            logger=self.logger,
            stage_notifier=self.stage_notifier,
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
        """Train, beside a frozen copy of the model that is freed at the end."""
        self._reference = await self.model.clone_inf()
        try:
            await self._loop.begin()
            while not self._loop.is_done:
                await self._loop.step(self.process_sample)
        finally:
            self._reference = None
        self._loop.end()

    async def process_sample(self, sample: Pair) -> Metrics | None:
        """Add the gradient of one pair."""
        if self._reference is None:
            raise InvalidRequestError("process_sample needs the frozen copy that run() makes; call it inside run()")
        preferred, rejected = sample
        reference = await asyncio.gather(self._reference.logprobs(preferred), self._reference.logprobs(rejected))
        if self.use_tangents:
            return await train_dpo_tangents(self.model, preferred, rejected, *reference, self.kl_beta)
        await self.model.train_dpo(preferred, rejected, *reference, self.kl_beta)
        return None
