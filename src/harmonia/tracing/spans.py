"""What the code that is traced calls; each call is a look at one attribute while traces are off.

Spans exist inside a request or a job only: what runs in the background makes none of its own.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from harmonia.errors import InvalidRequestError
from harmonia.tracing.base import SILENT, Attributes, Span

if TYPE_CHECKING:
    from harmonia.tracing.otlp import Exporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_INHERITED = os.environ.get("TRACEPARENT", "")


class _Tracing:
    """Of this process."""

    exporter: Exporter | None = None


_TRACING = _Tracing()


def configure(service: str, environment: Mapping[str, str] = os.environ) -> None:
    """Turn traces on if the environment says where they go.

    service: how this process calls itself unless `OTEL_SERVICE_NAME` does. Errors: InvalidRequestError where the extra
    `otel` is missing, or a variable holds what cannot be used.
    """
    name = next((name for name in _ENDPOINTS if environment.get(name)), None)
    if name is None or environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or _TRACING.exporter is not None:
        return
    if not environment[name].startswith(("http://", "https://")):
        raise InvalidRequestError(f"{name} is no address; give one such as http://localhost:4318", field=name)
    protocol = next((item for item in _PROTOCOLS if environment.get(item)), None)
    if protocol is not None and environment[protocol] != _PROTOCOL:
        raise InvalidRequestError(
            f"{protocol} is {environment[protocol]!r}, and traces are sent as {_PROTOCOL}; leave it out, and give the "
            "collector's port for HTTP, usually 4318",
            field=protocol,
        )
    if not _is_installed():
        raise InvalidRequestError(
            f"{name} asks for traces, and what sends them is not installed: pip install 'harmonia[otel]', or leave it "
            "out",
            field=name,
        )
    from harmonia.tracing.otlp import Exporter

    _TRACING.exporter = Exporter(service)


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def close() -> None:
    """Send what was not sent yet, for some seconds at most, and turn traces off."""
    exporter, _TRACING.exporter = _TRACING.exporter, None
    if exporter is not None:
        exporter.close()


def is_on() -> bool:
    """Whether anything is told."""
    return _TRACING.exporter is not None


def incoming(name: str, headers: Iterable[tuple[bytes, bytes]]) -> Span:
    """A request from outside; continues the trace that its headers name (W3C trace context)."""
    exporter = _TRACING.exporter
    return SILENT if exporter is None else exporter.incoming(name, headers)


def root(name: str, attributes: Attributes) -> Span:
    """Something that begins here: a trace of its own."""
    exporter = _TRACING.exporter
    return SILENT if exporter is None else exporter.root(name, attributes)


def span(name: str, attributes: Attributes | None = None) -> Span:
    """A part of what runs now; nothing where that is not traced."""
    exporter = _TRACING.exporter
    return SILENT if exporter is None else exporter.span(name, attributes or {})


def traceparent() -> str:
    """What runs now, for the header `traceparent` of others; empty where it is not traced.

    A process that tells nothing itself hands on what it was started under, as its variable `TRACEPARENT` says.
    """
    exporter = _TRACING.exporter
    return _INHERITED if exporter is None else exporter.traceparent()


def record(parent: str, name: str, times_s: tuple[float, float], attributes: Attributes, error: str = "") -> str:
    """Tell of what is over already, and return the `traceparent` of its parts; empty where it is not told.

    parent: a `traceparent`. times_s: its begin and end, as `time.monotonic()` gave them on this machine. error: a
    short name of what went wrong.
    """
    exporter = _TRACING.exporter
    return "" if exporter is None or not parent else exporter.record(parent, name, times_s, attributes, error)
