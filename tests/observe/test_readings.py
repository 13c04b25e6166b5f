"""Rates, shares and quantiles between two pages of metrics."""

from __future__ import annotations

import math

import pytest

from glmserve.observe.readings import MOST_READINGS, History, Readings, Window
from glmserve.observe.signals import SIGNALS, gpu_shares, read_all


def page(prefix: str = "glmserve:", **values: float) -> str:
    """A page with one sample a name; `a__b_c="d"` is not needed here, so labels are written by the tests that want them."""
    return "".join(f"{prefix}{name} {value}\n" for name, value in values.items())


def histogram(name: str, counts: dict[str, float], prefix: str = "glmserve:") -> str:
    """Cumulative buckets, in order."""
    lines = [f'{prefix}{name}_bucket{{le="{bound}"}} {count}\n' for bound, count in counts.items()]
    return f"# TYPE {prefix}{name} histogram\n" + "".join(lines) + f"{prefix}{name}_count {counts['+Inf']}\n{prefix}{name}_sum 1\n"


def window(before: str, after: str, seconds: float = 10.0) -> Window:
    return Window(Readings.parse(before, 100.0), Readings.parse(after, 100.0 + seconds))


def history(before: str, after: str, seconds: float = 10.0) -> History:
    kept = History(60)
    kept.add(Readings.parse(before, 100.0))
    kept.add(Readings.parse(after, 100.0 + seconds))
    return kept


@pytest.mark.parametrize("prefix", ["glmserve:", "vllm:"])
def test_prefixes_are_taken_off(prefix: str) -> None:
    readings = Readings.parse(page(prefix, num_requests_running=3), 1.0)
    assert readings.total("num_requests_running") == 3
    assert readings.prefix == prefix
    assert readings.total("num_requests_waiting") is None


def test_what_is_no_metrics_page_is_refused() -> None:
    with pytest.raises(ValueError):
        Readings.parse("<html>no { metrics", 1.0)


def test_totals_means_and_labels() -> None:
    text = 'http_requests_total{status="200",path="/a"} 5\nhttp_requests_total{status="500",path="/a"} 1\nnot_a_number NaN\n'
    readings = Readings.parse(text, 0.0)
    assert readings.total("http_requests_total") == 6
    assert readings.total("http_requests_total", status="500") == 1
    assert readings.total("http_requests_total", status="404") is None
    assert readings.mean("http_requests_total") == 3
    assert readings.by("http_requests_total", "status") == {"200": 5, "500": 1}
    assert readings.total("not_a_number") is None


def test_rates_outlive_a_restart() -> None:
    assert window(page(generation_tokens_total=100), page(generation_tokens_total=150)).rate("generation_tokens_total") == 5
    assert window(page(generation_tokens_total=100), page(generation_tokens_total=30)).rate("generation_tokens_total") == 3
    assert window(page(other=1), page(other=1)).rate("generation_tokens_total") is None


def test_a_series_that_appears_counts_from_zero() -> None:
    grown = window('r_total{s="a"} 4\n', 'r_total{s="a"} 5\nr_total{s="b"} 2\n').increases_by("r_total", "s")
    assert grown == {"a": 1, "b": 2}


def test_quantiles_are_those_of_the_new_observations() -> None:
    before = histogram("t_seconds", {"0.1": 100, "0.2": 100, "1.0": 100, "+Inf": 100})
    after = histogram("t_seconds", {"0.1": 100, "0.2": 180, "1.0": 200, "+Inf": 200})
    between = window(before, after)
    assert between.quantile("t_seconds", 0.4) == pytest.approx(0.15)  # the 40th of the 80 between 0.1 and 0.2
    assert between.quantile("t_seconds", 0.9) == pytest.approx(0.6)
    assert window(after, after).quantile("t_seconds", 0.5) is None
    assert between.quantile("other", 0.5) is None


def test_a_quantile_above_the_last_bound_is_the_last_bound() -> None:
    zero = histogram("t_seconds", {"0.1": 0, "1.0": 0, "+Inf": 0})
    assert window(zero, histogram("t_seconds", {"0.1": 0, "1.0": 1, "+Inf": 10})).quantile("t_seconds", 0.9) == 1.0


def test_a_history_forgets_but_keeps_a_whole_window() -> None:
    kept = History(30)
    for second in range(0, 100, 10):
        kept.add(Readings.parse(page(x_total=second), float(second)))
    whole, short = kept.window(30), kept.window(10)
    assert whole is not None and whole.seconds == 30
    assert short is not None and short.seconds == 10
    assert (longer := kept.window(1000)) is not None and longer.seconds <= 40
    assert kept.mean("x_total", 20) == 80


def test_a_history_stays_small_however_often_one_looks() -> None:
    kept = History(3600)
    for second in range(7200):
        kept.add(Readings.parse(page(x_total=second), float(second)))
    assert len(list(kept.within(3600))) < 2 * MOST_READINGS
    whole, short = kept.window(3600), kept.window(60)
    assert whole is not None and 3600 <= whole.seconds < 3700
    assert short is not None and 60 <= short.seconds < 130 and short.rate("x_total") == 1


def test_families_tell_kind_help_and_samples() -> None:
    text = "# HELP glmserve:steps_total Steps taken\n# TYPE glmserve:steps_total counter\nglmserve:steps_total 3\n"
    assert Readings.parse(text, 0.0).families == {"steps": ("counter", "Steps taken", ("steps_total",))}


def test_shares_of_device_time_sum_to_one() -> None:
    form = 'glmserve:gpu_time_seconds_total{{activity="{}",engine="0"}} {}\n'
    holes = 'glmserve:launch_bound_seconds_total{{engine="0"}} {}\n'
    before = form.format("decode", 10) + form.format("idle_no_work", 10) + form.format("idle_http", 0) + holes.format(1)
    after = form.format("decode", 16) + form.format("idle_no_work", 13) + form.format("idle_http", 1) + holes.format(5)
    kept = history(before, after)
    assert gpu_shares(kept, 10) == pytest.approx({"decode": 0.6, "idle_no_work": 0.3, "idle_http": 0.1})
    signals = read_all(kept, 10)
    assert signals["gpu_busy"] == pytest.approx(0.6)
    assert signals["gpu_waiting_for_host"] == pytest.approx(0.1)
    assert signals["gpu_launch_bound"] == pytest.approx(0.4)


def test_errors_are_those_of_users() -> None:
    form = 'http_requests_total{{method="POST",path="{}",status="{}"}} {}\n'
    before = form.format("/chat", 200, 0) + form.format("/ready", 503, 0)
    before += 'http_requests_total{method="GET",path="/",status="200"} 0\nhttp_requests_total{path="/web/{path:path}",status="200"} 0\n'
    after = 'http_requests_total{method="GET",path="/",status="200"} 90\nhttp_requests_total{path="/web/{path:path}",status="200"} 90\n'
    after += form.format("/chat", 200, 9) + form.format("/chat", 502, 1) + form.format("/ready", 503, 50)
    assert SIGNALS["error_rate"].read(history(before, after), 10) == pytest.approx(0.1)
    reasons = 'glmserve:request_success_total{{finished_reason="{}"}} {}\n'
    after += reasons.format("stop", 3) + reasons.format("error", 1)
    assert SIGNALS["error_rate"].read(history(before, after), 10) == pytest.approx(0.25)
    assert SIGNALS["error_rate"].read(history(after, after), 10) is None


def test_requests_per_second_are_answers_or_else_http_requests() -> None:
    http = 'http_requests_total{{path="{}"}} {}\n'
    before, after = http.format("/chat", 10) + http.format("/metrics", 10), http.format("/chat", 30) + http.format("/metrics", 90)
    assert SIGNALS["requests_per_second"].read(history(before, after), 10) == 2
    finished = "glmserve:e2e_request_latency_seconds_count {}\n"
    ours = history(before + finished.format(1), after + finished.format(11))
    assert SIGNALS["requests_per_second"].read(ours, 10) == 1


def test_nvml_by_the_side() -> None:
    text = page(nvml_memory_used_bytes=60, nvml_memory_total_bytes=80, nvml_power_watts=350, nvml_power_limit_watts=700)
    text += 'glmserve:nvml_throttle{reason="hw_slowdown"} 0\nglmserve:nvml_throttle{reason="sw_power_cap"} 1\n'
    text += 'glmserve:nvml_temperature_celsius{gpu="0"} 60\nglmserve:nvml_temperature_celsius{gpu="1"} 71\n'
    signals = read_all(history(text, text), 10)
    assert signals["nvml_memory"] == 0.75
    assert signals["nvml_power"] == 0.5
    assert signals["nvml_throttled"] == 0  # at its power limit a GPU is well
    hot = text + 'glmserve:nvml_throttle{reason="hw_thermal"} 1\n'
    assert SIGNALS["nvml_throttled"].read(history(hot, hot), 10) == 1
    assert signals["nvml_temperature"] == 71


def test_an_empty_history_and_a_silent_server_read_nothing() -> None:
    assert set(read_all(History(60), 10).values()) == {None}
    assert all(value is None or not math.isnan(value) for value in read_all(history(page(x=1), page(x=1)), 10).values())
