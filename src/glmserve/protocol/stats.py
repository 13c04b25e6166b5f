"""What the engine says of itself once a step.  A metric is one field here: the exporter iterates over them.

A field's kind, help and label are in its annotation, and `metric_fields` reads them there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta

Kind = Literal["gauge", "counter", "histogram"]

STEP_BOUNDS = tuple(2**power for power in range(15))  # 1 to 16,384 tokens or requests in a step


def gauge(help_text: str, label: str = "") -> Meta:
    """Annotation of a value that goes up and down."""
    return Meta(description=help_text, extra={"kind": "gauge", "label": label})


def counter(help_text: str, label: str = "") -> Meta:
    """Annotation of a value that only grows."""
    return Meta(description=help_text, extra={"kind": "counter", "label": label})


def _histogram(help_text: str) -> Meta:
    return Meta(description=help_text, extra={"kind": "histogram"})


class DeviceSeconds(msgspec.Struct, array_like=True):
    """Wall time of the device since the engine started, by what it did or waited for.  The fields sum to that time.

    The engine fills all but `idle_tokenizing` and `idle_http`, which only the HTTP wing can tell from `idle_no_work`.
    """

    prefill: float = 0.0
    decode: float = 0.0
    sampling: float = 0.0
    idle_no_work: float = 0.0  # nobody asked for anything
    idle_scheduling: float = 0.0  # requests were there; the host planned, launched, read results or sent them
    idle_tokenizing: float = 0.0  # the only requests there were being turned into tokens
    idle_http: float = 0.0  # the only requests there were being read, checked or handed over in the HTTP process
    idle_kv_full: float = 0.0  # requests waited, and no K/V block was free for any
    idle_draining: float = 0.0  # the engine was told to end


class StepCounts(msgspec.Struct, array_like=True):
    """A histogram over steps: how many had at most STEP_BOUNDS[i], not counted before; the last count is those above all."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(STEP_BOUNDS) + 1))
    sum: int = 0

    def observe(self, value: int) -> None:
        """One more step."""
        self.counts[bisect_left(STEP_BOUNDS, value)] += 1
        self.sum += value


class EngineStats(msgspec.Struct, array_like=True):
    """A snapshot after one engine step; counters run from the engine's start.  Suffixes are vLLM's where vLLM has the metric."""

    num_requests_running: Annotated[int, gauge("Requests in the running batch")] = 0
    num_requests_waiting: Annotated[int, gauge("Requests waiting in the engine's queue")] = 0
    kv_cache_usage_perc: Annotated[float, gauge("Share of K/V blocks in use, 0 to 1")] = 0.0
    num_preemptions: Annotated[int, counter("Requests pushed back to the queue because K/V ran out")] = 0
    prompt_tokens: Annotated[int, counter("Prompt tokens computed")] = 0
    generation_tokens: Annotated[int, counter("Tokens generated")] = 0
    prefix_cache_queries: Annotated[int, counter("Prompt tokens looked up in the K/V cache")] = 0
    prefix_cache_hits: Annotated[int, counter("Prompt tokens found in the K/V cache")] = 0
    engine_steps: Annotated[int, counter("Engine steps: the heartbeat of a working engine")] = 0
    iteration_tokens_total: Annotated[StepCounts, _histogram("Tokens computed in a step")] = msgspec.field(default_factory=StepCounts)
    decode_batch_size: Annotated[StepCounts, _histogram("Requests in a decode step")] = msgspec.field(default_factory=StepCounts)
    gpu_time_seconds: Annotated[
        DeviceSeconds, counter("Wall time of the device, be it a GPU or the CPU, by what it did; the parts sum to all of it", "activity")
    ] = msgspec.field(default_factory=DeviceSeconds)
    model_bandwidth_utilization_perc: Annotated[
        float, gauge("MBU: bytes the model had to move in the last ten seconds, as a share of what the device can, 0 to 1")
    ] = 0.0
    model_flops_utilization_perc: Annotated[
        float, gauge("MFU: arithmetic the model needed in the last ten seconds, as a share of what the device can, 0 to 1")
    ] = 0.0
    estimated_flops_per_gpu: Annotated[float, counter("Floating-point operations that the model needed")] = 0.0
    estimated_read_bytes_per_gpu: Annotated[float, counter("Bytes of weights and K/V that had to be read")] = 0.0
    estimated_write_bytes_per_gpu: Annotated[float, counter("Bytes of K/V that had to be written")] = 0.0
    launch_bound_seconds: Annotated[
        float, counter("Work of a GPU in steps that the host launched no faster than it ran them, so that it waited between their kernels")
    ] = 0.0


class MetricField(NamedTuple):
    """One field of a struct as a metric.  `label` names what tells the parts of a family apart; "" where there are none."""

    field: str
    kind: Kind
    help: str
    label: str


def metric_fields(struct: type[msgspec.Struct]) -> Iterator[MetricField]:
    """Each field of a struct whose annotations say what kind of metric it is."""
    for name, hint in get_type_hints(struct, include_extras=True).items():
        meta: Meta = hint.__metadata__[0]
        extra: dict[str, Any] = meta.extra or {}
        yield MetricField(name, extra["kind"], meta.description or name, extra.get("label", ""))
