"""The one logger of the project: `log = get_logger(__name__)`."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

FORMATS = ("text", "json")
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Of the HTTP request that is being answered; every line that is written meanwhile carries it."""

_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
ROUTINE = re.compile(r"^\S+ +(DEBUG|INFO) ")
"""How lines of this form begin that tell of nothing unusual."""


class _Text(logging.Formatter):
    """A line for people."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line, request_id = super().formatMessage(record), REQUEST_ID.get()
        return f"{line} [{request_id}]" if request_id else line


class _Json(logging.Formatter):
    """An object for machines: time (UTC), level, logger, message, and, where there are, request_id and trace."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, below `harmonia`."""
    return logging.getLogger(name if name.startswith("harmonia") else f"harmonia.{name}")


def configure(level: str | None = None, style: str | None = None) -> None:
    """Send the project's log, and what the HTTP server says, to standard error, once per process.

    level: a name of `logging`; defaults to the environment's `ADAPTIVE_LOG_LEVEL`, `ADAPTIVE_LOGGING_LEVEL`, then INFO.
    style: `text` or `json`; defaults to `ADAPTIVE_LOG_FORMAT`, then text. `ValueError` for others.
    """
    style = style or os.environ.get("ADAPTIVE_LOG_FORMAT", "text").lower()
    if style not in FORMATS:
        raise ValueError(f"ADAPTIVE_LOG_FORMAT is {style!r}; give one of {', '.join(FORMATS)}")
    root = logging.getLogger("harmonia")
    wanted = level or os.environ.get("ADAPTIVE_LOG_LEVEL") or os.environ.get("ADAPTIVE_LOGGING_LEVEL") or "INFO"
    root.setLevel(wanted.upper())
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Json() if style == "json" else _Text(_TEXT, datefmt="%H:%M:%S"))
        for logger in (root, logging.getLogger("uvicorn")):
            logger.addHandler(handler)
            logger.propagate = False


def attach(name: str) -> None:
    """Let what a library says go where the project's log goes."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        logger.handlers = list(logging.getLogger("harmonia").handlers)
        logger.propagate = not logger.handlers
