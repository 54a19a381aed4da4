"""Metrics for an MLflow server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from harmonia.trainers.metric_loggers.base import Logger, Metric, by_kind, file_name, is_installed, load

_MAX_PARAMS = 100
"""As many as MLflow takes at once."""
_MAX_PARAM_CHARS = 6000
_MAX_METRICS = 1000


class MLFlowLogger(Logger):
    """Logs to a run of its own in the experiment `project_name`, which is made if it is not there.

    Numbers are metrics, one step per record; the configuration is the run's parameters; texts are its tags; tables are
    HTML artifacts, at most one of a key every `min_table_logging_step_interval` steps. Needs `pip install
    harmonia[mlflow]`; InvalidRequestError without it. The process's own MLflow settings are left alone.
    """

    def __init__(
        self,
        project_name: str,
        run_name: str,
        tracking_uri: str,
        monitoring_link: str | None = None,
        experiment_tags: dict[str, str] | None = None,
        run_tags: dict[str, str] | None = None,
        min_table_logging_step_interval: int = 5,
    ) -> None:
        self._mlflow = load("mlflow", extra="mlflow")
        self._client = self._mlflow.MlflowClient(tracking_uri=tracking_uri)
        self._link = monitoring_link
        self._table_interval = min_table_logging_step_interval
        self._table_steps: dict[str, int] = {}
        self._step = 0
        experiment = self._client.get_experiment_by_name(project_name)
        self._experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(project_name)
        for key, value in (experiment_tags or {}).items():
            self._client.set_experiment_tag(self._experiment_id, key, value)
        run = self._client.create_run(self._experiment_id, tags=run_tags or {}, run_name=run_name)
        self._run_id: str = run.info.run_id

    @staticmethod
    def is_available() -> bool:
        """Whether MLflow is installed."""
        return is_installed("mlflow")

    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        """Log one record."""
        record, now = by_kind(metrics), int(time.time() * 1000)
        entity = self._mlflow.entities.Metric
        numbers = [entity(key, float(value), now, self._step) for key, value in record.numbers.items()]
        for start in range(0, len(numbers), _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=numbers[start : start + _MAX_METRICS])
        for key, text in record.texts.items():
            self._client.set_tag(self._run_id, key, text)
        for key, table in record.tables.items():
            if self._step - self._table_steps.get(key, -self._table_interval) >= self._table_interval:
                self._table_steps[key] = self._step
                name = f"tables/{file_name(key)}-{self._step:06d}.html"
                self._client.log_text(self._run_id, table.to_html_table(), name)
        self._step += 1

    def log_config(self, config: dict[str, Any]) -> None:
        """Log the run's parameters."""
        entity = self._mlflow.entities.Param
        params = [entity(key, str(value)[:_MAX_PARAM_CHARS]) for key, value in config.items()]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[start : start + _MAX_PARAMS])

    def get_state(self) -> dict[str, Any]:
        """The run and how many records it has."""
        return {"run_id": self._run_id, "step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on in that run; the one begun by this logger is deleted."""
        run_id = state.get("run_id")
        if run_id and run_id != self._run_id:
            self._client.delete_run(self._run_id)
            self._run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
        self._step = int(state.get("step", 0))

    def close(self) -> None:
        """Tell the server that the run is finished."""
        self._client.set_terminated(self._run_id)

    @property
    def training_monitoring_link(self) -> str | None:
        """The page of the run, below `monitoring_link`."""
        if self._link is None:
            return None
        return f"{self._link.rstrip('/')}/#/experiments/{self._experiment_id}/runs/{self._run_id}"
