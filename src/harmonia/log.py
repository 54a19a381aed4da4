"""The one logger of the project: `log = get_logger(__name__)`."""

from __future__ import annotations

import logging
import os
import sys

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, below `harmonia`."""
    return logging.getLogger(name if name.startswith("harmonia") else f"harmonia.{name}")


def configure(level: str | None = None) -> None:
    """Send the project's log to standard error, once per process.

    level: a name of `logging`; defaults to the environment's `ADAPTIVE_LOG_LEVEL`, then INFO.
    """
    root = logging.getLogger("harmonia")
    root.setLevel(level or os.environ.get("ADAPTIVE_LOG_LEVEL", "INFO").upper())
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
