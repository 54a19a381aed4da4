"""Two loggers as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harmonia.trainers.metric_loggers.base import Logger, Metric


class CompositeLogger(Logger):
    """Tells two loggers everything; people are sent to the main one."""

    def __init__(self, main_logger: Logger, second_logger: Logger) -> None:
        self.main_logger = main_logger
        self.second_logger = second_logger

    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        """Log one record with both."""
        self.main_logger(metrics)
        self.second_logger(metrics)

    def log_config(self, config: dict[str, Any]) -> None:
        """Note it with both."""
        self.main_logger.log_config(config)
        self.second_logger.log_config(config)

    def get_state(self) -> dict[str, Any]:
        """Both states."""
        return {"main": self.main_logger.get_state(), "second": self.second_logger.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue with both; a state that one logger alone gave is the main one's."""
        self.main_logger.set_state(state.get("main", state))
        self.second_logger.set_state(state.get("second", {}))

    def close(self) -> None:
        """End both, the second even if the main one fails to."""
        try:
            self.main_logger.close()
        finally:
            self.second_logger.close()

    @property
    def training_monitoring_link(self) -> str | None:
        """The main logger's."""
        return self.main_logger.training_monitoring_link
