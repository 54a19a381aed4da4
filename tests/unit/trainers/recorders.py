"""Loggers and stages that remember what they were told, and lessons to learn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harmonia.client import StringThread
from harmonia.client.recipe.notifiers import StageNotifier
from harmonia.client.recipe.stdout import StdoutJobNotifier
from harmonia.trainers.metric_loggers.base import Logger

MAX_BATCH_SIZE = 160
TOO_LONG = StringThread([("user", "Tell me more."), ("assistant", "And so on. " * 40)])


@dataclass
class Records(Logger):
    """A logger that keeps its records and the configuration."""

    records: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        self.records.append(dict(metrics))

    def log_config(self, config: dict[str, Any]) -> None:
        self.config |= config

    def column(self, key: str) -> list[Any]:
        """The values of one metric."""
        return [record[key] for record in self.records if key in record]


@dataclass
class Stage(StageNotifier):
    """A stage that keeps what it was told."""

    progress: list[tuple[int | None, int | None]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    job: StdoutJobNotifier = field(default_factory=StdoutJobNotifier)

    @property
    def job_notifier(self) -> StdoutJobNotifier:
        return self.job

    @property
    def stage_name(self) -> str:
        return "Lessons"

    def report_progress(
        self,
        tot_num_samples: int | None = None,
        processed_num_samples: int | None = None,
        monitoring_link: str | None = None,
        checkpoints: Any = None,
    ) -> None:
        self.progress.append((processed_num_samples, tot_num_samples))

    def set_monitoring_link(self, monitoring_link: str) -> None:
        """Nobody looks at it."""

    def report_metrics(self, metrics: Mapping[str, Any]) -> None:
        self.metrics.append(dict(metrics))


def lessons(count: int) -> list[StringThread]:
    """Threads that are easy to learn together."""
    return [StringThread([("user", f"{number} + 1?"), ("assistant", f"{number + 1}.")]) for number in range(count)]
