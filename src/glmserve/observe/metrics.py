"""What /metrics shows, in Prometheus' text format.  Suffixes and labels are vLLM's, the prefix is our own.

The engine's side is exported by iterating the fields of EngineStats: a new field needs no line here.
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

from glmserve.observe import metric_list
from glmserve.observe.gpu import GpuSampler
from glmserve.observe.metric_list import ENGINE_METRICS, GPU_METRICS, Declared, all_metrics
from glmserve.observe.request_record import RequestRecord
from glmserve.protocol.messages import EngineReady, FinishReason
from glmserve.protocol.stats import STEP_BOUNDS, EngineStats, StepCounts

__all__ = ["EngineView", "Metrics", "all_metrics"]

ENGINE = "0"  # one engine so far; the label is there so that dashboards need no change for a second


class EngineView:
    """What the exporter reads at each scrape: callables, so that it knows no client."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        ready: Callable[[], EngineReady | None],
        num_restarts: Callable[[], int],
        num_accepted: Callable[[], tuple[int, int]],
        num_rejected: Callable[[], int],
        gpu: GpuSampler | None = None,
        desired_replicas: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.stats = stats
        self.ready = ready
        self.num_restarts = num_restarts
        self.num_accepted = num_accepted  # (requests, prompt tokens) that hold a place
        self.num_rejected = num_rejected
        self.gpu = gpu
        self.desired_replicas = desired_replicas


class _EngineCollector(Collector):
    """Turns an EngineView into metric families when Prometheus asks."""

    def __init__(self, model_name: str, view: EngineView) -> None:
        self._labels = [model_name, ENGINE]
        self._view = view

    def collect(self) -> Iterator[Any]:
        yield from self._fields(ENGINE_METRICS, self._view.stats(), self._labels)
        num_requests, num_tokens = self._view.num_accepted()
        yield self._family(metric_list.NUM_ACCEPTED, num_requests, self._labels)
        yield self._family(metric_list.NUM_TOKENS_ACCEPTED, num_tokens, self._labels)
        yield self._family(metric_list.REJECTED, self._view.num_rejected(), self._labels)
        yield self._family(metric_list.RESTARTS, self._view.num_restarts(), self._labels)
        if (load := self._view.desired_replicas()) is not None:
            yield self._family(metric_list.DESIRED_REPLICAS, load, self._labels)
        if (ready := self._view.ready()) is not None:
            yield from self._of_ready(ready)
        if (gpu := self._view.gpu) is not None and gpu.latest is not None:
            yield from self._fields(GPU_METRICS, gpu.latest, [*self._labels, gpu.gpu or ""])

    def _fields(self, declared: dict[str, Declared], struct: msgspec.Struct, labels: list[str]) -> Iterator[Any]:
        for field, metric in declared.items():
            if (value := getattr(struct, field)) is not None:
                yield self._family(metric, value, labels)

    def _of_ready(self, ready: EngineReady) -> Iterator[Any]:
        values = [ready.block_size, ready.num_kv_blocks, ready.num_kv_tokens, ready.dtype]
        yield self._family(metric_list.CACHE_CONFIG, 1, [*self._labels, *map(str, values)])
        yield self._family(metric_list.PEAK_FLOPS, ready.device_peak_flops_per_second, self._labels)
        yield self._family(metric_list.PEAK_BYTES, ready.device_peak_bytes_per_second, self._labels)
        yield self._family(metric_list.DEVICE_INFO, 1, [*self._labels, ready.device_name])

    @staticmethod
    def _family(metric: Declared, value: Any, labels: list[str]) -> Any:
        """`value` is a number, counts of steps, or a struct or dict of parts, told apart by the last label."""
        if isinstance(value, StepCounts):
            return _step_histogram(metric, value, labels)
        family = (GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily)(metric.name, metric.help, labels=metric.labels)
        if isinstance(value, msgspec.Struct):
            value = msgspec.structs.asdict(value)
        for part, number in value.items() if isinstance(value, dict) else [(None, value)]:
            family.add_metric(labels if part is None else [*labels, part], number)
        return family


def _step_histogram(metric: Declared, value: StepCounts, labels: list[str]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(str, map(float, STEP_BOUNDS)), "+Inf"]
    family.add_metric(labels, list(zip(bounds, accumulate(value.counts), strict=True)), value.sum)
    return family


class Metrics:
    """Every metric of one server, in a registry of its own."""

    def __init__(self, model_name: str, view: EngineView | None = None) -> None:
        self.registry = CollectorRegistry()
        self._labels = (model_name, ENGINE)
        self.http_requests = self._counter(metric_list.HTTP_REQUESTS)
        self._success = self._counter(metric_list.SUCCESS)
        self._first_token = self._histogram(metric_list.FIRST_TOKEN)
        self._inter_token = self._histogram(metric_list.INTER_TOKEN)
        self._e2e = self._histogram(metric_list.E2E)
        self._queue = self._histogram(metric_list.QUEUE)
        self._prefill = self._histogram(metric_list.PREFILL)
        self._decode = self._histogram(metric_list.DECODE)
        self._inference = self._histogram(metric_list.INFERENCE)
        self._prompt = self._histogram(metric_list.PROMPT)
        self._generation = self._histogram(metric_list.GENERATION)
        for reason in FinishReason:  # from zero on, or Prometheus would not see the first error as an increase
            self._success.labels(*self._labels, reason.value)
        if view is not None:
            self.registry.register(_EngineCollector(model_name, view))
        self.observe_inter_token = self._inter_token.observe
        self.observe_first_token = self._first_token.observe

    def _counter(self, metric: Declared) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def _histogram(self, metric: Declared) -> Histogram:
        family = Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry)
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
