"""What Prometheus sees."""

from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from glmserve.observe.metrics import EngineView, Metrics
from glmserve.observe.request_log import ChoiceRecord, RequestRecord
from glmserve.protocol.messages import EngineReady, FinishReason
from glmserve.protocol.stats import DeviceSeconds, EngineStats, StepCounts, engine_metrics

READY = EngineReady(
    model="m", device="cpu", device_name="cpu", dtype="float32", max_model_len=10, max_num_seqs=2, num_kv_blocks=4, block_size=16,
    weights_bytes=0, kv_cache_bytes=0, placement=[], load_seconds={},
)  # fmt: skip


def make(stats: EngineStats, ready: EngineReady | None = READY) -> Metrics:
    return Metrics("m", EngineView(lambda: stats, lambda: ready, lambda: 2, lambda: (3, 400), lambda: 5))


def samples(metrics: Metrics) -> dict[str, float]:
    """Name -> value of samples that carry no further labels than model and engine."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {sample.name: sample.value for family in families for sample in family.samples if set(sample.labels) == {"model_name", "engine"}}


def test_every_engine_field_is_exported() -> None:
    plain = [metric for metric in engine_metrics() if metric.kind != "histogram" and not metric.label]
    stats = EngineStats(**{metric.field: float(index + 1) for index, metric in enumerate(plain)})
    shown = samples(make(stats))
    for metric in plain:
        assert shown[f"glmserve:{metric.exported_name}"] == getattr(stats, metric.field)
    assert len(list(engine_metrics())) == len(msgspec.structs.fields(EngineStats))


def test_the_device_s_time_has_a_sample_an_activity() -> None:
    seconds = DeviceSeconds(*(float(index) for index, _ in enumerate(DeviceSeconds.__struct_fields__)))
    text = make(EngineStats(gpu_time_seconds=seconds)).render().decode()
    for name, value in msgspec.structs.asdict(seconds).items():
        assert f'glmserve:gpu_time_seconds_total{{activity="{name}",engine="0",model_name="m"}} {value}\n' in text


def test_a_step_histogram_counts_what_is_at_most_each_bound() -> None:
    counts = StepCounts()
    for value in (1, 2, 3, 4, 20_000):
        counts.observe(value)
    text = make(EngineStats(iteration_tokens_total=counts)).render().decode()
    cumulated = {"1.0": 1, "2.0": 2, "4.0": 4, "16384.0": 4, "+Inf": 5}
    for bound, count in cumulated.items():
        assert f'glmserve:iteration_tokens_total_bucket{{engine="0",le="{bound}",model_name="m"}} {count:.1f}' in text
    assert 'glmserve:iteration_tokens_total_sum{engine="0",model_name="m"} 20010.0' in text


def test_what_the_device_can_do_is_shown_once_the_engine_is_ready() -> None:
    ready = msgspec.structs.replace(READY, device_peak_flops_per_second=7e14)
    assert samples(make(EngineStats(), ready))["glmserve:device_peak_flops_per_second"] == 7e14
    assert b"device_peak" not in make(EngineStats(), None).render()


def test_the_servers_own_side() -> None:
    shown = samples(make(EngineStats()))
    assert shown["glmserve:num_requests_accepted"] == 3
    assert shown["glmserve:num_prompt_tokens_accepted"] == 400
    assert shown["glmserve:requests_rejected_total"] == 5
    assert shown["glmserve:engine_restarts_total"] == 2


def test_the_pool_is_described_once_the_engine_is_ready() -> None:
    assert b'num_kv_tokens="64"' in make(EngineStats()).render()
    assert b"cache_config_info" not in make(EngineStats(), None).render()


def test_a_finished_request_fills_the_histograms() -> None:
    metrics = make(EngineStats())
    done = ChoiceRecord(FinishReason.STOP, 7, queue_seconds=0.5, prefill_seconds=1.0, decode_seconds=2.0)
    lost = ChoiceRecord(FinishReason.ABORT, 1)
    metrics.observe_request(RequestRecord("r", 200, 11, 0, 3.5, 1.5, [done, lost]))
    shown = samples(metrics)
    assert shown["glmserve:e2e_request_latency_seconds_sum"] == 3.5
    assert shown["glmserve:request_queue_time_seconds_sum"] == 0.5
    assert shown["glmserve:request_inference_time_seconds_sum"] == 3.0
    assert shown["glmserve:request_decode_time_seconds_count"] == 1
    assert shown["glmserve:request_generation_tokens_sum"] == 8
    assert b'request_success_total{engine="0",finished_reason="abort",model_name="m"} 1.0' in metrics.render()


def test_http_requests_keep_the_plain_name() -> None:
    metrics = make(EngineStats())
    metrics.count_http("POST", "/chat", 200)
    assert b'http_requests_total{method="POST",path="/chat",status="200"} 1.0' in metrics.render()
