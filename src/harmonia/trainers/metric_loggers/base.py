"""What every metric logger has in common."""

from __future__ import annotations

import importlib
import importlib.util
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger

log = get_logger(__name__)

Metric = str | int | float | Table
"""What may be logged: numbers (Python's and NumPy's), texts, tables."""


class Logger(ABC):
    """Takes the metrics of a training, one record per step: `logger({"loss": 0.5})`. Only `__call__` must be written.

    `get_state` and `set_state` travel in checkpoints, so that a resumed training goes on in the same curves.
    """

    @abstractmethod
    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        """Log one record."""

    def log_config(self, config: dict[str, Any]) -> None:  # noqa: B027 - a logger without a place for it is fine
        """Note what the training was told, as plain data."""

    def get_state(self) -> dict[str, Any]:
        """What `set_state` needs to continue, as plain data."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - as above
        """Continue where another logger was when it gave this state."""

    def close(self) -> None:  # noqa: B027 - as above
        """Write what is pending and end."""

    @property
    def training_monitoring_link(self) -> str | None:
        """Where people look at the curves."""
        return None

    @staticmethod
    def is_available() -> bool:
        """Whether what it writes through is installed."""
        return True


class Record(NamedTuple):
    """The metrics of one record by kind; each logger writes those that it has a form for."""

    numbers: dict[str, int | float]
    texts: dict[str, str]
    tables: dict[str, Table]


def by_kind(metrics: Mapping[str, Any]) -> Record:
    """Sort metrics by kind. Of any other kind of value a warning names the key, and the record goes on without it."""
    record = Record({}, {}, {})
    for key, value in metrics.items():
        if isinstance(value, numbers.Integral):
            record.numbers[key] = int(value)
        elif isinstance(value, numbers.Real):
            record.numbers[key] = float(value)
        elif isinstance(value, str):
            record.texts[key] = value
        elif isinstance(value, Table):
            record.tables[key] = value
        else:
            log.warning("metric %r is a %s and was not logged; log numbers, texts, Tables", key, type(value).__name__)
    return record


def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


def load(module: str, extra: str) -> Any:
    """Import an optional module; InvalidRequestError that names the extra to install if it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidRequestError(f"{module} is not installed; `pip install harmonia[{extra}]` brings it") from error


def file_name(key: str) -> str:
    """A metric's key as a file's name."""
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in key)
