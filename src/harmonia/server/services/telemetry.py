"""What `/metrics` tells: the HTTP server's own counts, and the workers' at the moment of asking.

Ours are named `harmonia_*`; `harmony_*` and `concorde_*` are names that dashboards use already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client import Histogram as HttpHistogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from harmonia.protocol.messages import Histogram, Stats

POOL = "default"
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_MODEL_LABELS = ("model", "replica")
_POOL_LABELS = ("pool", "model", "replica")

_ALWAYS = ("requests", "generated_tokens", "prompt_tokens", "cached_tokens", "ttft_timeouts")

_HELP = {
    "requests": "Generations asked for",
    "generated_tokens": "Tokens generated",
    "prompt_tokens": "Prompt tokens of started requests",
    "cached_tokens": "Prompt tokens taken from the cache",
    "drafted_tokens": "Tokens that a draft proposed",
    "accepted_tokens": "Proposed tokens that were right",
    "draft_steps": "Tokens proposed to a sequence at a time now; 0 where that would not pay",
    "ttft_timeouts": "Requests given up because their first token was late",
    "ttft_seconds": "Time to the first token, queue included",
    "inter_token_seconds": "Time between two tokens of one answer",
    "queue_seconds": "Time in the queue",
    "batch_size": "Sequences per engine step",
    "queue_length": "Requests that wait now",
    "running": "Sequences that generate now",
    "cache_occupancy": "Share of cache blocks in use",
    "evictions": "Cache blocks given up for others",
    "preemptions": "Sequences put back to the queue for want of cache",
    "prefix_query_tokens": "Prompt tokens looked up in the cache",
    "prefix_hit_tokens": "Prompt tokens found there",
}


class WorkerReport(msgspec.Struct, frozen=True):
    """The statistics of one worker, and which it is."""

    replica: str
    backbone: str
    models: frozenset[str]
    stats: Stats
    pool: str = POOL


class Metrics:
    """Counts HTTP requests and renders everything."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._durations = HttpHistogram(
            "concorde_http_server_request_duration_seconds",
            "Time to the end of an HTTP response",
            ("http_route", "graphql_operation", "http_response_status_code"),
            registry=self._registry,
            buckets=_BUCKETS_S,
        )
        self._generations = HttpHistogram(
            "harmony_request_duration_s",
            "Time to the end of the response of an inference request",
            ("pool", "model"),
            registry=self._registry,
            buckets=_BUCKETS_S,
        )
        self._requests = Counter(
            "harmonia_http_requests", "HTTP requests", ("route", "status"), registry=self._registry
        )

    def observe_request(self, route: str, status: int, seconds: float, operation: str = "") -> None:
        """Count a finished HTTP request; `operation` is set for GraphQL."""
        self._requests.labels(route, str(status)).inc()
        self._durations.labels(route, operation, str(status)).observe(seconds)

    def observe_generation(self, model: str, pool: str, seconds: float) -> None:
        """Count a finished request for inference. pool: of the worker that was asked last; empty if none was, as for
        external models."""
        self._generations.labels(pool, model).observe(seconds)

    def render(self, reports: list[WorkerReport]) -> bytes:
        """All metrics in Prometheus' text format."""
        snapshot = CollectorRegistry(auto_describe=False)
        snapshot.register(_Snapshot(reports))
        return generate_latest(self._registry) + generate_latest(snapshot)


class _Snapshot(Collector):
    def __init__(self, reports: list[WorkerReport]) -> None:
        self._reports = reports

    def collect(self) -> Iterable[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield from self._model_counters()
        yield from self._histograms()
        yield from self._seed_names()

    def _gauges(self) -> Iterator[Metric]:
        for name in _names(report.stats.gauges for report in self._reports):
            family = GaugeMetricFamily(f"harmonia_{name}", _help(name), labels=_MODEL_LABELS)
            for report in self._reports:
                if name in report.stats.gauges:
                    family.add_metric((report.backbone, report.replica), report.stats.gauges[name])
            yield family

    def _counters(self) -> Iterator[Metric]:
        for name in _names(report.stats.counters for report in self._reports):
            family = CounterMetricFamily(f"harmonia_{name}", _help(name), labels=_MODEL_LABELS)
            for report in self._reports:
                if name in report.stats.counters:
                    family.add_metric((report.backbone, report.replica), report.stats.counters[name])
            yield family

    def _model_counters(self) -> Iterator[Metric]:
        for name in _names([_ALWAYS, *(counters for _, _, counters in self._by_model())]):
            family = CounterMetricFamily(f"harmonia_{name}", _help(name), labels=_MODEL_LABELS)
            for model, replica, counters in self._by_model():
                family.add_metric((model, replica), counters.get(name, 0.0))
            yield family

    def _histograms(self) -> Iterator[Metric]:
        for name in _names(histograms for _, _, histograms in self._histograms_by_model()):
            family = HistogramMetricFamily(f"harmonia_{name}", _help(name), labels=_MODEL_LABELS)
            for model, replica, histograms in self._histograms_by_model():
                if name in histograms:
                    histogram = histograms[name]
                    family.add_metric((model, replica), _buckets(histogram), histogram.total)
            yield family

    def _seed_names(self) -> Iterator[Metric]:
        ttft = HistogramMetricFamily("harmony_ttft_ms", "Time to the first token, queue included", labels=_POOL_LABELS)
        pools = {report.replica: report.pool for report in self._reports}
        for model, replica, histograms in self._histograms_by_model():
            if "ttft_seconds" in histograms:
                seconds = histograms["ttft_seconds"]
                ttft.add_metric((pools[replica], model, replica), _buckets(seconds, 1000.0), 1000.0 * seconds.total)
        timeouts = UnknownMetricFamily("harmony_ttft_timeout_count", _help("ttft_timeouts"), labels=_POOL_LABELS)
        requests = UnknownMetricFamily("harmony_generation_requests_count", _help("requests"), labels=_POOL_LABELS)
        generated = CounterMetricFamily("concorde_token_generated", _help("generated_tokens"), labels=_MODEL_LABELS)
        processed = CounterMetricFamily("concorde_token_processed", _help("prompt_tokens"), labels=_MODEL_LABELS)
        for model, replica, counters in self._by_model():
            timeouts.add_metric((pools[replica], model, replica), counters.get("ttft_timeouts", 0.0))
            requests.add_metric((pools[replica], model, replica), counters.get("requests", 0.0))
            generated.add_metric((model, replica), counters.get("generated_tokens", 0.0))
            processed.add_metric((model, replica), counters.get("prompt_tokens", 0.0))
        yield from (ttft, timeouts, requests, generated, processed)

    def _by_model(self) -> Iterator[tuple[str, str, dict[str, float]]]:
        for report in self._reports:
            # A model that nobody has asked yet counts zero; a series that begins at one has no first increase.
            for model in sorted(report.models | set(report.stats.by_model)):
                yield model, report.replica, report.stats.by_model.get(model, {})

    def _histograms_by_model(self) -> Iterator[tuple[str, str, dict[str, Histogram]]]:
        for report in self._reports:
            for model, histograms in report.stats.histograms.items():
                # `*` stands for the whole engine, which the backbone names best.
                yield report.backbone if model == "*" else model, report.replica, histograms


def _names(tables: Iterable[Iterable[str]]) -> list[str]:
    return sorted({name for table in tables for name in table})


def _help(name: str) -> str:
    return _HELP.get(name, name.replace("_", " ").capitalize())


def _buckets(histogram: Histogram, scale: float = 1.0) -> list[tuple[str, float]]:
    bounds = ["+Inf" if bound == float("inf") else repr(float(bound * scale)) for bound in histogram.bounds]
    return list(zip(bounds, map(float, histogram.counts), strict=True))
