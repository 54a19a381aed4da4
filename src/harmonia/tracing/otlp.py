"""Spans through OpenTelemetry's SDK to a collector; imported only where traces are on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from contextvars import Token

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import PROCESS_PID, SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from harmonia import __version__
from harmonia.log import attach
from harmonia.tracing.base import SILENT, Attributes, Span

_CLOSE_S = 3.0
"""How long a collector may take for the last spans."""
_CARRIED = frozenset({b"traceparent", b"tracestate"})
_PARENT = "traceparent"


class Exporter:
    """Makes spans, and sends them in the background, many at a time; a collector that is away costs them."""

    def __init__(self, service: str) -> None:
        named = OTELResourceDetector().detect().attributes.get(SERVICE_NAME, service)
        resource = Resource.create({SERVICE_NAME: named, SERVICE_VERSION: __version__, PROCESS_PID: os.getpid()})
        attach("opentelemetry")  # where it says that a collector does not answer
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("harmonia", __version__)
        self._headers = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left; in a thread, since a collector that is away would be asked again and again."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def incoming(self, name: str, headers: Iterable[tuple[bytes, bytes]]) -> Span:
        """See `harmonia.tracing.incoming`."""
        carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers if key in _CARRIED}
        return _Told(self._tracer.start_span(name, self._headers.extract(carrier, Context()), SpanKind.SERVER))

    def root(self, name: str, attributes: Attributes) -> Span:
        """See `harmonia.tracing.root`."""
        return _Told(self._tracer.start_span(name, Context(), attributes=attributes))

    def span(self, name: str, attributes: Attributes) -> Span:
        """See `harmonia.tracing.span`."""
        if not trace.get_current_span().is_recording():
            return SILENT
        return _Told(self._tracer.start_span(name, attributes=attributes))

    def traceparent(self) -> str:
        """See `harmonia.tracing.traceparent`."""
        span = trace.get_current_span()
        return _text_of(span) if span.is_recording() else ""

    def record(
        self, parent: str, name: str, times_s: tuple[float, float], attributes: Attributes, error: str = ""
    ) -> str:
        """See `harmonia.tracing.record`."""
        began_ns, ended_ns = (_unix_ns(moment_s) for moment_s in times_s)
        within = self._headers.extract({_PARENT: parent}, Context())
        span = self._tracer.start_span(name, within, attributes=attributes, start_time=began_ns)
        if error:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(max(began_ns, ended_ns))
        return _text_of(span) if span.get_span_context().trace_flags.sampled else ""


class _Told(Span):
    """A span of OpenTelemetry's; the current one inside its block."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._token: Token[Context] | None = None

    def note(self, attributes: Attributes) -> None:
        """Tell more of it."""
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        """Call it something else."""
        self._span.update_name(name)

    def fail(self, reason: str) -> None:
        """It went wrong."""
        self._span.set_status(Status(StatusCode.ERROR, reason))

    def __enter__(self) -> Span:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace_: object) -> None:
        if self._token is not None:
            context.detach(self._token)
        if kind is not None:
            self.fail(kind.__name__)  # and not its text, which may quote what callers wrote
        self._span.end()


def _text_of(span: trace.Span) -> str:
    place = span.get_span_context()
    return f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"


def _unix_ns(monotonic_s: float) -> int:
    return time.time_ns() - round((time.monotonic() - monotonic_s) * 1e9)
