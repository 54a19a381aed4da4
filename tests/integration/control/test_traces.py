"""Traces of a real server and its worker, as a collector gets them."""

from __future__ import annotations

import gzip
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from harmonia import tracing
from harmonia.client.recipe.http_plane import HttpControlPlane
from harmonia.errors import InvalidRequestError
from harmonia.tracing import spans
from tests.integration.control.starting import Started, chat, started

pytestmark = pytest.mark.timeout(300)

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ONLINE = re.compile(r"tiny is online")
UNSAMPLED = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Trace(dict[str, Span]):
    """The spans of a trace by name; of those with the same name the one that came last."""

    def __init__(self, spans: list[Span]) -> None:
        super().__init__({span.name: span for span in spans})
        self.spans = spans


class Collector:
    """Takes spans as OTLP over HTTP."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, Span]] = []
        self._news = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces", self.path
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        with self._news:
            for resource in request.resource_spans:
                told = _plain(resource.resource.attributes)
                self._spans += [(told["service.name"], span) for scope in resource.scope_spans for span in scope.spans]
            self._news.notify_all()

    def trace(self, trace_id: str, until: Callable[[Trace], bool]) -> Trace:
        """The spans of a trace by name, once they are what is waited for."""
        with self._news:
            self._news.wait_for(lambda: until(self._named(trace_id)), 60)
            return self._named(trace_id)

    def _named(self, trace_id: str) -> Trace:
        return Trace([span for _, span in self._spans if span.trace_id.hex() == trace_id])

    @property
    def everything(self) -> str:
        with self._news:
            return repr(self._spans)

    @property
    def services(self) -> set[str]:
        with self._news:
            return {service for service, _ in self._spans}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _plain(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


def told(span: Span) -> dict[str, Any]:
    return _plain(span.attributes)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def traced(collector: Collector, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server whose traces go to the collector, with a model that answers."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100", "OMP_NUM_THREADS": "1"}
    with started(tmp_path_factory.mktemp("up") / "data", str(tiny), **variables) as up:
        up.wait(ONLINE)
        yield up
        assert up.end(signal.SIGTERM) == 0


def _complete(found: Trace) -> bool:
    return {"POST /api/v1/chat/completions", "generate"} <= found.keys()


def parts(found: Trace, name: str) -> set[str]:
    """The names of the spans directly below one."""
    return {span.name for span in found.spans if span.parent_span_id == found[name].span_id}


@pytest.mark.parametrize("stream", [False, True])
def test_a_trace_goes_from_the_caller_to_the_steps_of_the_engine(
    traced: Started, collector: Collector, stream: bool
) -> None:
    trace_id = f"{stream + 1:032x}"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "x-request-id": "mine"}
    with traced.client(traced.api_key) as client:
        body = chat("default/tiny", "Hello there", max_tokens=12, min_tokens=12, stream=stream)
        answer = client.post("/api/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert "trace" not in repr(answer.headers).lower()

    found = collector.trace(trace_id, _complete)
    request = found["POST /api/v1/chat/completions"]
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert request.kind == Span.SPAN_KIND_SERVER
    assert told(request) == {
        "http.request.method": "POST",
        "http.route": "/api/v1/chat/completions",
        "http.response.status_code": 200,
        "harmonia.request_id": "mine",
        "gen_ai.request.model": "default/tiny",
    }
    assert {"check permission", "choose model", "choose worker", "generate"} <= parts(found, request.name)
    assert parts(found, "check permission") == {"database glance"}
    assert parts(found, "generate") == {"tokenize", "queue", "prefill", "decode"}
    assert {"engine step"} == parts(found, "decode")

    generate, decode, prefill = told(found["generate"]), told(found["decode"]), found["prefill"]
    assert (generate["gen_ai.usage.output_tokens"], generate["harmonia.version"]) == (12, 0)
    assert generate["gen_ai.usage.input_tokens"] > generate["harmonia.cached_tokens"] >= 0
    assert decode["harmonia.steps"] == 11 and decode["harmonia.longest_step_ms"] > 0
    assert told(found["engine step"])["harmonia.sequences"] == 1
    moments = [found[name].start_time_unix_nano for name in (request.name, "generate", "queue", "prefill", "decode")]
    assert moments == sorted(moments)
    assert prefill.end_time_unix_nano == pytest.approx(found["decode"].start_time_unix_nano, abs=1e6)
    assert found["generate"].end_time_unix_nano < request.end_time_unix_nano


def test_what_goes_wrong_is_in_the_trace(traced: Started, collector: Collector) -> None:
    trace_id = f"{7:032x}"
    with traced.client(traced.api_key) as client:
        body = chat("default/tiny", "Hello", max_tokens=12, max_ttft_ms=0)
        answer = client.post(
            "/api/v1/chat/completions", json=body, headers={"traceparent": f"00-{trace_id}-{9:016x}-01"}
        )
    assert answer.status_code == 408
    found = collector.trace(trace_id, _complete)
    assert told(found["POST /api/v1/chat/completions"])["http.response.status_code"] == 408
    assert found["generate"].status.message == "deadline_exceeded"


def test_a_caller_who_leaves_ends_the_trace(traced: Started, collector: Collector) -> None:
    trace_id = f"{8:032x}"
    headers = {"traceparent": f"00-{trace_id}-{9:016x}-01"}
    body = chat("default/tiny", "Hello", max_tokens=400, min_tokens=400, stream=True)
    asked = ("POST", "/api/v1/chat/completions")
    with traced.client(traced.api_key) as client, client.stream(*asked, json=body, headers=headers) as stream:
        lines = stream.iter_lines()
        for _ in range(20):
            next(lines)
    found = collector.trace(trace_id, _complete)
    assert found["generate"].status.message == "cancelled"
    assert told(found["decode"])["harmonia.steps"] < 400


def test_embeddings_graphql_and_unsampled_callers(traced: Started, collector: Collector) -> None:
    trace_id = f"{9:032x}"
    headers = {"traceparent": f"00-{trace_id}-{9:016x}-01"}
    with traced.client(traced.api_key) as client:
        silent = {"traceparent": UNSAMPLED}
        body = {"model": "default/tiny", "input": "some text"}
        assert client.post("/api/v1/embeddings", json=body, headers=silent).status_code == 200
        assert client.get("/metrics", headers=headers).status_code == 200
        assert client.post("/api/v1/embeddings", json=body, headers=headers).status_code == 200
        query = {"query": "{ projects { key } }"}
        assert client.post("/api/graphql", json=query, headers=headers).status_code == 200
    found = collector.trace(trace_id, lambda found: {"POST /api/graphql", "embed"} <= found.keys())
    assert told(found["POST /api/graphql"])["graphql.operation.name"] == "projects"
    assert {"tokenize", "queue", "prefill"} == parts(found, "embed")
    assert not [name for name in found if "metrics" in name]
    assert UNSAMPLED[3:35] not in collector.everything


def test_both_processes_tell_and_nobody_tells_secrets(traced: Started, collector: Collector) -> None:
    with traced.client(traced.api_key) as client:
        body = chat("default/tiny", "a very private question", max_tokens=4)
        client.post("/api/v1/chat/completions?code=open-sesame", json=body, headers={"traceparent": CALLER})
    collector.trace(CALLER[3:35], _complete)
    assert collector.services == {"harmonia", "harmonia-worker"}
    everything = collector.everything
    for secret in (traced.api_key, "private question", "open-sesame"):
        assert secret not in everything


def test_a_collector_that_is_away_costs_nobody_anything(tmp_path: Path) -> None:
    with started(tmp_path / "data", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") as up:
        with up.client(up.api_key) as client:
            assert client.post("/api/graphql", json={"query": "{ me { email } }"}).status_code == 200
        began = time.monotonic()
        assert up.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "http://localhost:4318"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'",
        ),
    ],
)
def test_variables_that_cannot_be_used_are_named(variables: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(says)):
        tracing.configure("test", variables)
    assert not tracing.is_on()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_is_installed", lambda: False)
    with pytest.raises(InvalidRequestError, match=r"harmonia\[otel\]"):
        tracing.configure("test", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"})
    assert not tracing.is_on()


def test_off_means_nothing_is_made_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    tracing.configure("test", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"})
    tracing.configure("test", {})
    assert not tracing.is_on()
    assert tracing.span("a") is tracing.span("b") is tracing.incoming("GET", ()) is tracing.SILENT
    assert tracing.record(CALLER, "a", (0.0, 1.0), {}) == ""


def test_a_job_hands_its_trace_on(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    tracing.configure("test")
    try:
        with tracing.root("job", {"harmonia.job": "1"}):
            parent = tracing.traceparent()
    finally:
        tracing.close()
    trace_id = parent.split("-")[1]
    assert told(collector.trace(trace_id, lambda found: "job" in found)["job"])["harmonia.job"] == "1"

    monkeypatch.setattr(spans, "_INHERITED", parent)  # as a process that was started with it as TRACEPARENT
    plane = HttpControlPlane("http://127.0.0.1:1", "hk-x", "lab")
    assert plane._http.headers["traceparent"] == parent
    plane.close()
