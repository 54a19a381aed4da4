"""Metrics for whoever keeps the job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harmonia.client.recipe.notifiers import JobNotifier
from harmonia.trainers.metric_loggers.base import Logger, Metric, by_kind

_STAGE = "metrics"


class JobLogger(Logger):
    """Hands every record to the job's notifier; numbers are Python's own there."""

    def __init__(self, job: JobNotifier) -> None:
        self._job = job

    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        """Hand over one record."""
        record = by_kind(metrics)
        given: dict[str, Any] = {**record.numbers, **record.texts, **record.tables}
        self._job.report_metrics(_STAGE, {key: given[key] for key in metrics if key in given})
