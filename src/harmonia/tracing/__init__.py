"""Traces: what a request met on its way, from HTTP to the engine's steps, in OpenTelemetry's form.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` says where they go; OpenTelemetry's other variables then count as well. It
needs the extra `otel`, which nobody imports while this is off.
"""

from harmonia.tracing.base import SILENT, Attributes, Span
from harmonia.tracing.spans import close, configure, incoming, is_on, record, root, span, traceparent

__all__ = [
    "SILENT",
    "Attributes",
    "Span",
    "close",
    "configure",
    "incoming",
    "is_on",
    "record",
    "root",
    "span",
    "traceparent",
]
