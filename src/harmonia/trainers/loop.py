"""What SFT, DPO and reward modelling have in common: batches, optimizer steps, records, and samples left out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from harmonia.client import TrainingModel
from harmonia.client.recipe.notifiers import StageNotifier
from harmonia.errors import InvalidRequestError, SequenceTooLongError
from harmonia.log import get_logger
from harmonia.trainers.batching import async_map_batch, batch_failure, described
from harmonia.trainers.callbacks import RecipeCallback, invoke_callbacks
from harmonia.trainers.dataset import DataSet
from harmonia.trainers.metric_loggers.base import Logger
from harmonia.trainers.schedules import Scheduler

log = get_logger(__name__)

T = TypeVar("T")
Metrics = Mapping[str, float]
TrainSample = Callable[[T], Awaitable[Metrics | None]]
"""Adds the gradient of one sample; what it returns is combined over the batch and logged."""


@dataclass(eq=False)
class TrainingLoop(Generic[T]):
    """`begin`, then `step` until `is_done`, then `end`.

    A sample whose call raises, such as one longer than the model's `max_batch_size`, is left out and the next one takes
    its place (`async_map_batch` says how often). How many were left out so far is part of every record.
    """

    dataset: DataSet[T]
    model: TrainingModel
    logger: Logger
    stage_notifier: StageNotifier
    callbacks: Sequence[RecipeCallback]
    schedule: Scheduler
    samples_per_batch: int
    max_grad_norm: float
    epochs: float
    skip_nan_gradients: bool
    weight_decay: float = 0.0
    combine: Callable[[Sequence[Metrics]], Metrics] = field(default_factory=lambda: means)
    """The metrics of a batch out of those of its samples."""
    num_trained: int = field(default=0, init=False)
    num_dropped: int = field(default=0, init=False)
    first_error: Exception | None = field(default=None, init=False)
    last_error: Exception | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.epochs > 0:
            raise InvalidRequestError(f"epochs must be more than 0, got {self.epochs}", field="epochs")
        if self.samples_per_batch < 1:
            raise InvalidRequestError(
                f"samples_per_batch must be at least 1, got {self.samples_per_batch}", field="samples_per_batch"
            )

    @property
    def completion_percentage(self) -> float:
        """The share that is done, 0 to 1; the last batch may take it past 1."""
        return self.dataset.completion_percentage() / self.epochs

    @property
    def is_done(self) -> bool:
        """Whether the samples of all epochs were drawn."""
        return self.completion_percentage >= 1

    async def begin(self) -> None:
        """Let the callbacks look at the model as it is."""
        self._report_progress()
        metrics = await invoke_callbacks(self.callbacks, self.completion_percentage)
        if metrics.keys() - {"completion_percentage", "training/completion_percentage"}:
            self.logger(metrics)

    async def step(self, train: TrainSample[T]) -> None:
        """One batch and one optimizer step, whose learning rate is that of the share that is done after the batch."""
        dropped_before = self.num_dropped
        record = await self._learn(train)
        record |= await invoke_callbacks(self.callbacks, self.completion_percentage)
        self.logger(record | {"num_dropped_samples": self.num_dropped})
        self._report_progress()
        if self.num_dropped > dropped_before:
            self.stage_notifier.report_metrics({"num_dropped_samples": self.num_dropped})

    def end(self) -> None:
        """Say what was left out and why."""
        if self.num_dropped:
            assert self.first_error
            log.warning(
                "%s: %d samples were dropped and %d trained; the first one because of %s",
                self.stage_notifier.stage_name,
                self.num_dropped,
                self.num_trained,
                described(self.first_error),
            )

    async def _learn(self, train: TrainSample[T]) -> dict[str, Any]:
        """The metrics of a step; none if all that was left for the last batch is too long."""
        trained_before = self.num_trained
        results = await async_map_batch(self._counted(train), self.dataset, self.samples_per_batch)
        if self.num_trained == trained_before:
            self._check_harmless()
            return {}
        logs = await self.model.optim_step(
            self.schedule(self.completion_percentage), self.weight_decay, self.max_grad_norm, self.skip_nan_gradients
        )
        return {**logs, **self.combine([metrics for metrics in results if metrics])}

    def _check_harmless(self) -> None:
        """RuntimeError unless a batch without a single sample is the samples' own fault, and others were trained."""
        error = self.last_error
        if error and not (self.num_trained and isinstance(error, SequenceTooLongError)):
            raise batch_failure(self.num_dropped, self.samples_per_batch, error) from error

    def _counted(self, train: TrainSample[T]) -> TrainSample[T]:
        async def trained(sample: T) -> Metrics | None:
            try:
                metrics = await train(sample)
            except Exception as error:
                self.num_dropped += 1
                self.first_error = self.first_error or error
                self.last_error = error
                raise
            self.num_trained += 1
            return metrics

        return trained

    def _report_progress(self) -> None:
        total = max(1, int(len(self.dataset) * self.epochs))
        self.stage_notifier.report_progress(
            tot_num_samples=total,
            processed_num_samples=min(self.dataset.idx, total),
            monitoring_link=self.logger.training_monitoring_link,
        )


def means(records: Sequence[Metrics]) -> dict[str, float]:
    """The mean of each key over the records that have it."""
    values: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.items():
            values.setdefault(key, []).append(value)
    return {key: sum(some) / len(some) for key, some in values.items()}
