"""What Prometheus sees."""

from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from glmserve.observe.metrics import EngineView, Metrics, engine_fields
from glmserve.observe.request_log import ChoiceRecord, RequestRecord
from glmserve.protocol.messages import EngineReady, FinishReason
from glmserve.protocol.stats import EngineStats

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
    stats = EngineStats(**{name: float(index + 1) for index, name in enumerate(EngineStats.__struct_fields__)})
    shown = samples(make(stats))
    for name, kind, _ in engine_fields():
        assert shown[f"glmserve:{name}" + ("_total" if kind == "counter" else "")] == getattr(stats, name)
    assert len(list(engine_fields())) == len(msgspec.structs.fields(EngineStats))


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
