"""The names by which built-in recipes log their metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harmonia.client.table import Table
from harmonia.trainers import Logger


class RenamingLogger(Logger):
    """Logs through another logger, some metrics by another name: `{"loss": "train/loss"}`."""

    def __init__(self, logger: Logger, names: Mapping[str, str]) -> None:
        self._logger = logger
        self._names = dict(names)

    def __call__(self, metrics: Mapping[str, str | int | float | Table]) -> None:
        """Log one record."""
        self._logger({self._names.get(name, name): value for name, value in metrics.items()})

    def log_config(self, config: dict[str, Any]) -> None:
        """Pass on."""
        self._logger.log_config(config)

    def get_state(self) -> dict[str, Any]:
        """The other logger's."""
        return self._logger.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Pass on."""
        self._logger.set_state(state)

    def close(self) -> None:
        """Pass on."""
        self._logger.close()

    @property
    def training_monitoring_link(self) -> str | None:
        """The other logger's."""
        return self._logger.training_monitoring_link
