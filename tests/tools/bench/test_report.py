"""Figures from outcomes, computed a second way."""

from __future__ import annotations

import random

import numpy as np
import pytest

from glmserve.protocol.errors import SettingsError
from glmserve.tools.bench.answers import Outcome
from glmserve.tools.bench.load import LoadResult
from glmserve.tools.bench.report import max_concurrent, measure, percentile, remarks
from glmserve.tools.bench.settings import ServeBenchConfig


def outcome(sent: float = 0.0, latency: float = 1.0, ttft: float | None = 0.1, tokens: int | None = 10, error: str = "") -> Outcome:
    return Outcome(sent, latency, ttft, [0.1, 0.3], 100, tokens, error, detail="why")


def test_percentiles_are_numpys() -> None:
    values = [random.Random(0).random() for _ in range(37)]
    for percent in (0.1, 50, 90, 99, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_rates_count_what_succeeded() -> None:
    result = LoadResult([outcome(), outcome(sent=1.0), outcome(error="HTTP 503"), outcome(error="HTTP 503")], duration=2.0, client_busy=0.1)
    figures = measure(result, ServeBenchConfig())
    assert (figures["completed"], figures["failed"], figures["errors_by_kind"]) == (2, 2, {"HTTP 503": 2})
    assert (figures["request_throughput"], figures["output_throughput"], figures["total_token_throughput"]) == (1.0, 10.0, 110.0)
    assert figures["mean_tpot_ms"] == pytest.approx(100.0)
    assert figures["median_itl_ms"] == pytest.approx(200.0)
    assert remarks(figures) == ["2 failed: HTTP 503: why"]


def test_goodput_counts_requests_that_meet_every_limit() -> None:
    good, slow_start, slow_tokens = outcome(), outcome(ttft=0.3), outcome(latency=3.0)
    config = ServeBenchConfig(goodput=("ttft:200 tpot:150",))
    assert measure(LoadResult([good, slow_start, slow_tokens], 2.0, 0.0), config)["request_goodput"] == 0.5
    unlimited = measure(LoadResult([good], 2.0, 0.0), ServeBenchConfig())
    assert unlimited["request_goodput"] is None


def test_unknown_token_counts_give_no_token_rate() -> None:
    figures = measure(LoadResult([outcome(), outcome(tokens=None)], 2.0, 0.0), ServeBenchConfig())
    assert figures["output_throughput"] is None
    assert figures["request_throughput"] == 1.0


def test_no_success_gives_no_times() -> None:
    assert measure(LoadResult([outcome(error="connection")], 2.0, 0.0), ServeBenchConfig())["p99_ttft_ms"] is None


def test_most_at_a_time() -> None:
    assert max_concurrent([outcome(0.0, 1.0), outcome(0.5, 1.0), outcome(1.0, 1.0)]) == 2


def test_a_busy_client_is_told() -> None:
    assert "--num-workers" in remarks(measure(LoadResult([outcome()], 2.0, client_busy=0.95), ServeBenchConfig()))[0]


@pytest.mark.parametrize(
    "bad", [{"goodput": ("ttft",)}, {"goodput": ("itl:5",)}, {"percentile_metrics": "ttft,x"}, {"metric_percentiles": "p99"}]
)
def test_bad_settings_are_told(bad: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        ServeBenchConfig(**bad)
