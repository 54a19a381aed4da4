"""Metrics for Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harmonia.trainers.metric_loggers.base import Logger, Metric, by_kind, is_installed, load


class WandbLogger(Logger):
    """Logs to a run of its own in `project_name` of `entity` (by default the account's), one step per record.

    The run begins with the first thing that is logged. Needs `pip install harmonia[wandb]`; InvalidRequestError without
    it.
    """

    def __init__(self, project_name: str, run_name: str, entity: str | None = None) -> None:
        self._wandb = load("wandb", extra="wandb")
        self._where = {"project": project_name, "name": run_name, "entity": entity}
        self._config: dict[str, Any] = {}
        self._begun: Any = None
        self._run_id: str | None = None
        self._step = 0

    @staticmethod
    def is_available() -> bool:
        """Whether wandb is installed."""
        return is_installed("wandb")

    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        """Log one record."""
        record = by_kind(metrics)
        tables = {key: self._table(*table.export()) for key, table in record.tables.items()}
        self._run().log({**record.numbers, **record.texts, **tables}, step=self._step)
        self._step += 1

    def _table(self, headers: list[str], rows: list[list[str]]) -> Any:
        return self._wandb.Table(columns=headers, data=rows)

    def log_config(self, config: dict[str, Any]) -> None:
        """Note the run's configuration. It does not begin the run: a restored state may still name another."""
        self._config |= config
        if self._begun is not None:
            self._begun.config.update(config, allow_val_change=True)

    def get_state(self) -> dict[str, Any]:
        """The run and how many records it has."""
        return {"run_id": self._run().id, "step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on in that run."""
        self.close()
        self._run_id = state.get("run_id")
        self._step = int(state.get("step", 0))

    def close(self) -> None:
        """Upload what is pending and finish the run."""
        if self._begun is not None:
            self._begun.finish()
            self._begun = None

    @property
    def training_monitoring_link(self) -> str | None:
        """The page of the run; None when it is offline."""
        return self._run().url or None

    def _run(self) -> Any:
        if self._begun is None:
            self._begun = self._wandb.init(
                **self._where, id=self._run_id, resume="allow" if self._run_id else None, reinit="create_new"
            )
            self._run_id = self._begun.id
            self._begun.config.update(self._config, allow_val_change=True)
        return self._begun
