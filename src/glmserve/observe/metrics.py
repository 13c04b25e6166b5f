"""What /metrics shows, in Prometheus' text format.  Suffixes and labels are vLLM's, the prefix is our own.

The engine's side is one field of EngineStats each, exported by iterating the fields: a new field needs no line here.
The HTTP side is counted where it happens, by the middleware and by the text wing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from glmserve.observe.request_log import RequestRecord
from glmserve.protocol.messages import EngineReady
from glmserve.protocol.stats import STEP_BOUNDS, EngineMetric, EngineStats, StepCounts, engine_metrics

PREFIX = "glmserve:"
LABELS = ("model_name", "engine")
ENGINE = "0"  # one engine so far; the label is there so that dashboards need no change for a second

FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
REQUEST_BUCKETS = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
PEAK_HELP = {
    "device_peak_flops_per_second": "Floating-point operations a second of a large matrix product, measured when the engine started",
    "device_peak_bytes_per_second": "Bytes a second of a large copy, read plus written, measured when the engine started",
}
LENGTH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class EngineView:
    """What the exporter reads at each scrape: callables, so that it knows no client."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        ready: Callable[[], EngineReady | None],
        num_restarts: Callable[[], int],
        num_accepted: Callable[[], tuple[int, int]],
        num_rejected: Callable[[], int],
    ) -> None:
        self.stats = stats
        self.ready = ready
        self.num_restarts = num_restarts
        self.num_accepted = num_accepted  # (requests, prompt tokens) that hold a place
        self.num_rejected = num_rejected


class _EngineCollector(Collector):
    """Turns an EngineView into metric families when Prometheus asks."""

    def __init__(self, model_name: str, view: EngineView) -> None:
        self._labels = [model_name, ENGINE]
        self._view = view

    def collect(self) -> Iterator[Any]:
        stats = self._view.stats()
        for metric in engine_metrics():
            yield self._engine_family(metric, getattr(stats, metric.field))
        num_requests, num_tokens = self._view.num_accepted()
        yield self._family("gauge", "num_requests_accepted", "Requests that hold a place in the server", num_requests)
        yield self._family("gauge", "num_prompt_tokens_accepted", "Prompt tokens that hold a place in the server", num_tokens)
        yield self._family("counter", "requests_rejected", "Requests turned away because the server was full", self._view.num_rejected())
        yield self._family("counter", "engine_restarts", "Times the engine was restarted", self._view.num_restarts())
        if (ready := self._view.ready()) is not None:
            yield self._cache_info(ready)
            for name in ("device_peak_flops_per_second", "device_peak_bytes_per_second"):
                yield self._family("gauge", name, PEAK_HELP[name], getattr(ready, name))

    def _engine_family(self, metric: EngineMetric, value: Any) -> Any:
        if isinstance(value, StepCounts):
            return self._histogram(metric, value)
        if not metric.label:
            return self._family(metric.kind, metric.field, metric.help, value)
        family = CounterMetricFamily(PREFIX + metric.field, metric.help, labels=[*LABELS, metric.label])
        for part, seconds in msgspec.structs.asdict(value).items():
            family.add_metric([*self._labels, part], seconds)
        return family

    def _histogram(self, metric: EngineMetric, value: StepCounts) -> HistogramMetricFamily:
        family = HistogramMetricFamily(PREFIX + metric.field, metric.help, labels=LABELS)
        bounds = [*map(str, map(float, STEP_BOUNDS)), "+Inf"]
        family.add_metric(self._labels, list(zip(bounds, accumulate(value.counts), strict=True)), value.sum)
        return family

    def _family(self, kind: str, name: str, help_text: str, value: float) -> GaugeMetricFamily | CounterMetricFamily:
        family = (GaugeMetricFamily if kind == "gauge" else CounterMetricFamily)(PREFIX + name, help_text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _cache_info(self, ready: EngineReady) -> GaugeMetricFamily:
        labels = [*LABELS, "block_size", "num_gpu_blocks", "num_kv_tokens", "dtype"]
        family = GaugeMetricFamily(PREFIX + "cache_config_info", "The K/V pool", labels=labels)
        values = [ready.block_size, ready.num_kv_blocks, ready.num_kv_tokens, ready.dtype]
        family.add_metric([*self._labels, *map(str, values)], 1)
        return family


class Metrics:
    """Every metric of one server, in a registry of its own."""

    def __init__(self, model_name: str, view: EngineView | None = None) -> None:
        self.registry = CollectorRegistry()
        self._labels = (model_name, ENGINE)
        self.http_requests = Counter("http_requests", "HTTP requests", ("method", "path", "status"), registry=self.registry)
        self._success = Counter(
            PREFIX + "request_success", "Choices that ended, by reason", (*LABELS, "finished_reason"), registry=self.registry
        )
        self._first_token = self._histogram("time_to_first_token_seconds", "Request accepted to first token", FIRST_TOKEN_BUCKETS)
        self._inter_token = self._histogram("inter_token_latency_seconds", "Between two sendings of one answer", TOKEN_BUCKETS)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Request accepted to its end", REQUEST_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "Waiting for the engine", REQUEST_BUCKETS)
        self._prefill = self._histogram("request_prefill_time_seconds", "First scheduled to first token", REQUEST_BUCKETS)
        self._decode = self._histogram("request_decode_time_seconds", "First token to last", REQUEST_BUCKETS)
        self._inference = self._histogram("request_inference_time_seconds", "First scheduled to last token", REQUEST_BUCKETS)
        self._prompt = self._histogram("request_prompt_tokens", "Prompt tokens of a request", LENGTH_BUCKETS)
        self._generation = self._histogram("request_generation_tokens", "Generated tokens of a choice", LENGTH_BUCKETS)
        if view is not None:
            self.registry.register(_EngineCollector(model_name, view))
        self.observe_inter_token = self._inter_token.observe
        self.observe_first_token = self._first_token.observe

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(PREFIX + name, help_text, LABELS, buckets=buckets, registry=self.registry)
        child: Histogram = family.labels(*self._labels)
        return child

    def count_http(self, method: str, path: str, status: int) -> None:
        """One HTTP request was answered; `path` is the route's own, so that clients cannot make up labels."""
        self.http_requests.labels(method, path, str(status)).inc()

    def observe_request(self, record: RequestRecord) -> None:
        """A request ended."""
        self._e2e.observe(record.e2e_seconds)
        self._prompt.observe(record.num_prompt_tokens)
        for choice in record.choices:
            self._success.labels(*self._labels, choice.finish_reason.value).inc()
            self._generation.observe(choice.num_tokens)
            if choice.queue_seconds is not None:
                self._queue.observe(choice.queue_seconds)
            if choice.prefill_seconds is not None and choice.decode_seconds is not None:
                self._prefill.observe(choice.prefill_seconds)
                self._decode.observe(choice.decode_seconds)
                self._inference.observe(choice.prefill_seconds + choice.decode_seconds)

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
