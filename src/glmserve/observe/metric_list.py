"""Every metric of the server, declared once: name, kind, labels, help, buckets.  docs/metrics.md is made from this list.

The engine's metrics are the fields of EngineStats, the GPU's those of GpuReading; what the HTTP wing counts is declared here.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from glmserve.observe.gpu import GpuReading
from glmserve.protocol.stats import EngineStats, Kind, metric_fields

PREFIX = "glmserve:"
LABELS = ("model_name", "engine")

FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
REQUEST_BUCKETS = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
LENGTH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


class Declared(NamedTuple):
    """A metric by the name that its declaration has: Prometheus' text format ends a counter's name in _total."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = LABELS
    buckets: tuple[float, ...] = ()

    @property
    def shown_name(self) -> str:
        """The name on the page; of a histogram what stands before _bucket, _sum and _count."""
        return self.name + "_total" if self.kind == "counter" else self.name


class Documented(NamedTuple):
    """What docs/metrics.md says of a metric."""

    name: str
    type: Kind
    labels: tuple[str, ...]
    help: str


def _histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Declared:
    return Declared(PREFIX + name, "histogram", help_text, LABELS, buckets)


HTTP_REQUESTS = Declared("http_requests", "counter", "HTTP requests", ("method", "path", "status"))
SUCCESS = Declared(PREFIX + "request_success", "counter", "Choices that ended, by reason", (*LABELS, "finished_reason"))
FIRST_TOKEN = _histogram("time_to_first_token_seconds", "Request accepted to first token", FIRST_TOKEN_BUCKETS)
INTER_TOKEN = _histogram("inter_token_latency_seconds", "Between two sendings of one answer", TOKEN_BUCKETS)
E2E = _histogram("e2e_request_latency_seconds", "Request accepted to its end", REQUEST_BUCKETS)
QUEUE = _histogram("request_queue_time_seconds", "Waiting for the engine", REQUEST_BUCKETS)
PREFILL = _histogram("request_prefill_time_seconds", "First scheduled to first token", REQUEST_BUCKETS)
DECODE = _histogram("request_decode_time_seconds", "First token to last", REQUEST_BUCKETS)
INFERENCE = _histogram("request_inference_time_seconds", "First scheduled to last token", REQUEST_BUCKETS)
PROMPT = _histogram("request_prompt_tokens", "Prompt tokens of a request", LENGTH_BUCKETS)
GENERATION = _histogram("request_generation_tokens", "Generated tokens of a choice", LENGTH_BUCKETS)

NUM_ACCEPTED = Declared(PREFIX + "num_requests_accepted", "gauge", "Requests that hold a place in the server")
NUM_TOKENS_ACCEPTED = Declared(PREFIX + "num_prompt_tokens_accepted", "gauge", "Prompt tokens that hold a place in the server")
REJECTED = Declared(PREFIX + "requests_rejected", "counter", "Requests turned away because the server was full")
RESTARTS = Declared(PREFIX + "engine_restarts", "counter", "Times the engine was restarted")
DESIRED_REPLICAS = Declared(
    PREFIX + "desired_replicas", "gauge", "Replicas that this server's load needs, not rounded: add those of all servers up, then round up"
)
CACHE_CONFIG = Declared(
    PREFIX + "cache_config_info", "gauge", "The K/V pool", (*LABELS, "block_size", "num_gpu_blocks", "num_kv_tokens", "dtype")
)
PEAK_FLOPS = Declared(
    PREFIX + "device_peak_flops_per_second", "gauge", "Floating-point operations a second of a large matrix product, measured at the start"
)
PEAK_BYTES = Declared(
    PREFIX + "device_peak_bytes_per_second", "gauge", "Bytes a second of a large copy, read plus written, measured at the start"
)
DEVICE_INFO = Declared(PREFIX + "device_info", "gauge", "What the model runs on: a GPU by its name, or CPU", (*LABELS, "device_name"))


def fields_of(struct: type[msgspec.Struct], labels: tuple[str, ...]) -> dict[str, Declared]:
    """The metrics that are fields of a struct, by field."""
    return {
        metric.field: Declared(PREFIX + metric.field, metric.kind, metric.help, (*labels, metric.label) if metric.label else labels)
        for metric in metric_fields(struct)
    }


ENGINE_METRICS = fields_of(EngineStats, LABELS)
GPU_METRICS = fields_of(GpuReading, (*LABELS, "gpu"))


def all_metrics() -> list[Documented]:
    """Everything that /metrics can show."""
    own = [value for value in globals().values() if isinstance(value, Declared)]
    declared = [*ENGINE_METRICS.values(), *own, *GPU_METRICS.values()]
    return [Documented(metric.shown_name, metric.kind, metric.labels, metric.help) for metric in declared]
