"""What Prometheus sees."""

from __future__ import annotations

from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from glmserve.observe.gpu import GpuReading, GpuSampler
from glmserve.observe.metric_docs import metrics_page
from glmserve.observe.metric_list import ENGINE_METRICS
from glmserve.observe.metrics import EngineView, Metrics, all_metrics
from glmserve.observe.request_record import ChoiceRecord, RequestRecord
from glmserve.protocol.messages import EngineReady, FinishReason
from glmserve.protocol.stats import DeviceSeconds, EngineStats, StepCounts, metric_fields

READY = EngineReady(
    model="m", device="cpu", device_name="cpu", dtype="float32", max_model_len=10, max_num_seqs=2, num_kv_blocks=4, block_size=16,
    weights_bytes=0, kv_cache_bytes=0, placement=[], load_seconds={},
)  # fmt: skip


def make(stats: EngineStats, ready: EngineReady | None = READY, gpu: GpuSampler | None = None) -> Metrics:
    return Metrics("m", EngineView(lambda: stats, lambda: ready, lambda: 2, lambda: (3, 400), lambda: 5, gpu, lambda: 1.5))


def samples(metrics: Metrics) -> dict[str, float]:
    """Name -> value of samples that carry no further labels than model and engine."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {sample.name: sample.value for family in families for sample in family.samples if set(sample.labels) == {"model_name", "engine"}}


def test_every_engine_field_is_exported() -> None:
    plain = [metric for metric in metric_fields(EngineStats) if metric.kind != "histogram" and not metric.label]
    stats = EngineStats(**{metric.field: float(index + 1) for index, metric in enumerate(plain)})
    shown = samples(make(stats))
    for metric in plain:
        assert shown[ENGINE_METRICS[metric.field].shown_name] == getattr(stats, metric.field)
    assert len(list(metric_fields(EngineStats))) == len(msgspec.structs.fields(EngineStats))


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


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    gpu = GpuSampler(lambda: "GPU-1")
    gpu.latest, gpu.gpu = GpuReading(nvml_power_watts=350.0, nvml_throttle={"sw_power_cap": True, "hw_thermal": False}), "GPU-1"
    text = make(EngineStats(), gpu=gpu).render().decode()
    assert 'glmserve:nvml_power_watts{engine="0",gpu="GPU-1",model_name="m"} 350.0' in text
    assert 'glmserve:nvml_throttle{engine="0",gpu="GPU-1",model_name="m",reason="sw_power_cap"} 1.0' in text
    assert 'reason="hw_thermal"} 0.0' in text
    assert "nvml_utilization_perc" not in text


def test_the_list_of_all_metrics_and_the_page_agree() -> None:
    gpu = GpuSampler(lambda: "GPU-1")
    gpu.latest = GpuReading(*(1.0 for _ in GpuReading.__struct_fields__[:-1]), nvml_throttle={"sw_power_cap": True})
    metrics = make(EngineStats(), gpu=gpu)
    metrics.count_http("GET", "/", 200)
    metrics.observe_request(RequestRecord("r", 200, 11, 0, 3.5, 1.5, [ChoiceRecord(FinishReason.STOP, 7, 0.5, 1.0, 2.0)]))
    documented = {metric.name: metric for metric in all_metrics()}
    assert len(documented) == len(all_metrics())
    shown = set()
    for family in metrics.registry.collect():
        name = family.name + "_total" if family.type == "counter" else family.name
        shown.add(name)
        assert (documented[name].type, documented[name].help) == (family.type, family.documentation)
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(documented[name].labels), name
    assert shown == set(documented)


def test_the_written_page_is_the_generated_one() -> None:
    written = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == metrics_page(), "run `python -m glmserve.observe.metric_docs > docs/metrics.md`"


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


def test_every_way_to_end_is_counted_from_zero() -> None:
    """Prometheus' rate() does not see the first step of a series that begins at 1."""
    text = make(EngineStats()).render().decode()
    for reason in FinishReason:
        assert f'request_success_total{{engine="0",finished_reason="{reason.value}",model_name="m"}} 0.0\n' in text


def test_http_requests_keep_the_plain_name() -> None:
    metrics = make(EngineStats())
    metrics.count_http("POST", "/chat", 200)
    assert b'http_requests_total{method="POST",path="/chat",status="200"} 1.0' in metrics.render()
