"""The figures that people watch and alert on, each a name, a unit, its meaning, and how it is read from a History.

A new signal is one line in SIGNALS: alert rules, the monitor and the table in docs/monitoring.md iterate over it.
Names are those that this server and vLLM share; a signal that a server does not report reads None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from glmserve.observe.readings import History, Labels, Readings

IDLE = "idle_"  # how activities of gpu_time_seconds_total begin in which the device rests
HOST_IDLE = ("idle_scheduling", "idle_tokenizing", "idle_http")  # the device waits for a CPU although there is work
OPERATIONS = frozenset({"/metrics", "/health", "/ready", "/version", "/slow", "/scale"})  # asked by machines that watch, not by users


class Unit(StrEnum):
    """What a signal is measured in."""

    SHARE = "share"  # 0 to 1
    SECONDS = "seconds"
    COUNT = "count"
    PER_SECOND = "per second"
    CELSIUS = "°C"


def show(value: float | None, unit: Unit) -> str:
    """A value for people: "87%", "45 ms", "1,234/s"; a dash for one that is not known."""
    if value is None:
        return "-"
    if unit is Unit.SHARE:
        return f"{value:.1%}".replace(".0%", "%") if 0 < value < 0.0995 else f"{value:.0%}"
    if unit is Unit.SECONDS:
        return f"{value * 1000:.3g} ms" if value < 0.9995 else f"{value:.3g} s" if value < 999.5 else f"{value:,.0f} s"
    number = f"{value:,.0f}" if value >= 99.5 or value == int(value) else f"{value:.3g}"
    return number + {Unit.PER_SECOND: "/s", Unit.CELSIUS: " °C"}.get(unit, "")


@dataclass(frozen=True)
class Signal:
    """One figure; `read(history, seconds)` gives it over the last `seconds`, None where there is nothing to read.

    `source` is the metric without which it cannot be told.
    """

    name: str
    unit: Unit
    source: str
    help: str
    read: Callable[[History, float], float | None]


def gpu_shares(history: History, seconds: float) -> dict[str, float]:
    """Share of wall time of each activity, all engines together; they sum to 1.  Empty where not reported."""
    window = history.window(seconds)
    spent = window.increases_by("gpu_time_seconds_total", "activity") if window else {}
    total = sum(spent.values())
    return {activity: value / total for activity, value in spent.items()} if total else {}


def _busy(history: History, seconds: float) -> float | None:
    shares = gpu_shares(history, seconds)
    return sum(share for activity, share in shares.items() if not activity.startswith(IDLE)) if shares else None


def _waiting_for_host(history: History, seconds: float) -> float | None:
    shares = gpu_shares(history, seconds)
    return sum(shares.get(activity, 0.0) for activity in HOST_IDLE) if shares else None


def _launch_bound(history: History, seconds: float) -> float | None:
    window = history.window(seconds)
    wall = sum(window.increases_by("gpu_time_seconds_total", "activity").values()) if window else 0.0
    spent = window.increase("launch_bound_seconds_total") if window else None
    return None if spent is None or not wall else spent / wall


def _error_rate(history: History, seconds: float) -> float | None:
    """The larger of two shares: answers with a status of 5xx, and choices that the engine could not finish (a stream's status is 200)."""
    window = history.window(seconds)
    if window is None:
        return None
    statuses = {labels: grown for labels, grown in window.increases("http_requests_total").items() if is_for_users(labels)}
    failed = sum(grown for labels, grown in statuses.items() if dict(labels).get("status", "").startswith("5"))
    reasons = window.increases_by("request_success_total", "finished_reason")
    shares = [
        part / whole for part, whole in [(failed, sum(statuses.values())), (reasons.get("error", 0.0), sum(reasons.values()))] if whole
    ]
    return max(shares, default=None)


def is_for_users(labels: Labels) -> bool:
    """Whether a series of http_requests_total counts what users asked for; vLLM's label of the path is `handler`."""
    known = dict(labels)
    path = known.get("path", known.get("handler", ""))
    is_page = path.startswith("/web/") or (path == "/" and known.get("method") in ("GET", "HEAD"))  # POST / is ChatGLM-6B's own protocol
    return path not in OPERATIONS and not is_page


def _requests_per_second(history: History, seconds: float) -> float | None:
    """Requests that ended; of a server that only counts HTTP requests, those."""
    window = history.window(seconds)
    if window is None or window.seconds <= 0:
        return None
    if (rate := window.rate("e2e_request_latency_seconds_count")) is not None:
        return rate
    grown = window.increases("http_requests_total")
    return sum(value for labels, value in grown.items() if is_for_users(labels)) / window.seconds if grown else None


def _memory(history: History, seconds: float) -> float | None:
    last = history.last
    used, total = (last.total("nvml_memory_used_bytes"), last.total("nvml_memory_total_bytes")) if last else (None, None)
    return used / total if used is not None and total else None


def _power(history: History, seconds: float) -> float | None:
    last = history.last
    limit = last.total("nvml_power_limit_watts") if last else None
    drawn = history.mean("nvml_power_watts", seconds)
    return drawn / limit if drawn is not None and limit else None


def _throttled(history: History, seconds: float) -> float | None:
    """A GPU at its power limit works as hard as it is sold to: `nvml_power` tells that, and it is no fault."""
    reasons = history.last.by("nvml_throttle", "reason") if history.last else {}
    return max((value for reason, value in reasons.items() if reason != "sw_power_cap"), default=None)


def _hottest(history: History, seconds: float) -> float | None:
    last = history.last
    return max(last.series("nvml_temperature_celsius").values(), default=None) if last else None


def _mean(name: str) -> Callable[[History, float], float | None]:
    return lambda history, seconds: history.mean(name, seconds)


def _mean_share(name: str) -> Callable[[History, float], float | None]:
    return lambda history, seconds: history.mean_share(name, seconds)


def _rate(name: str) -> Callable[[History, float], float | None]:
    return lambda history, seconds: window.rate(name) if (window := history.window(seconds)) else None


def _increase(name: str) -> Callable[[History, float], float | None]:
    return lambda history, seconds: window.increase(name) if (window := history.window(seconds)) else None


def _quantile(name: str, share: float) -> Callable[[History, float], float | None]:
    return lambda history, seconds: window.quantile(name, share) if (window := history.window(seconds)) else None


LATENCIES = {
    "ttft": ("time_to_first_token_seconds", "Time to first token"),
    "itl": ("inter_token_latency_seconds", "Time between two sendings of an answer"),
    "e2e": ("e2e_request_latency_seconds", "Time of a whole request"),
    "queue_time": ("request_queue_time_seconds", "Time a request waits for the engine"),
}
QUANTILES = (50, 90, 99)


def _latency(name: str, percent: int) -> Signal:
    metric, words = LATENCIES[name]
    return Signal(f"{name}_p{percent}", Unit.SECONDS, metric, f"{words}, {percent}% are shorter", _quantile(metric, percent / 100))


def _share(name: str, metric: str, help_text: str) -> Signal:
    return Signal(name, Unit.SHARE, metric, help_text, _mean_share(metric))


def _number(name: str, metric: str, help_text: str) -> Signal:
    return Signal(name, Unit.COUNT, metric, help_text, _mean(metric))


def _speed(name: str, metric: str, help_text: str) -> Signal:
    return Signal(name, Unit.PER_SECOND, metric, help_text, _rate(metric + "_total"))


_ALL = (
    Signal("gpu_busy", Unit.SHARE, "gpu_time_seconds", "Wall time in which the device computes, as the engine counts it", _busy),
    Signal("gpu_waiting_for_host", Unit.SHARE, "gpu_time_seconds", "Wall time in which the device waits for a CPU", _waiting_for_host),
    Signal(
        "gpu_launch_bound",
        Unit.SHARE,
        "launch_bound_seconds",
        "Wall time in which a GPU waits between kernels launched singly",
        _launch_bound,
    ),
    _share("mbu", "model_bandwidth_utilization_perc", "Memory bandwidth in use, of what this chip can do"),
    _share("mfu", "model_flops_utilization_perc", "Arithmetic in use, of what this chip can do"),
    _share("kv_usage", "kv_cache_usage_perc", "K/V blocks in use"),
    _number("requests_running", "num_requests_running", "Requests in the running batch"),
    _number("requests_waiting", "num_requests_waiting", "Requests waiting for the engine"),
    Signal("requests_per_second", Unit.PER_SECOND, "http_requests", "Requests that ended", _requests_per_second),
    _speed("tokens_per_second", "generation_tokens", "Tokens generated"),
    _speed("prompt_tokens_per_second", "prompt_tokens", "Prompt tokens computed"),
    *(_latency(name, percent) for name in LATENCIES for percent in QUANTILES),
    Signal("error_rate", Unit.SHARE, "http_requests", "Requests that failed: status 5xx, or an answer that broke off", _error_rate),
    _speed("rejected_per_second", "requests_rejected", "Requests turned away because the server was full"),
    _speed("preemptions_per_second", "num_preemptions", "Requests pushed back because K/V ran out"),
    Signal("engine_restarts", Unit.COUNT, "engine_restarts", "Restarts of the engine", _increase("engine_restarts_total")),
    _share("nvml_utilization", "nvml_utilization_perc", "What nvidia-smi calls GPU utilization: some kernel ran"),
    Signal("nvml_memory", Unit.SHARE, "nvml_memory_used_bytes", "GPU memory in use, by any program", _memory),
    Signal("nvml_power", Unit.SHARE, "nvml_power_watts", "Power drawn, of the limit", _power),
    Signal("nvml_temperature", Unit.CELSIUS, "nvml_temperature_celsius", "Temperature of the hottest GPU", _hottest),
    Signal("nvml_throttled", Unit.COUNT, "nvml_throttle", "1 while a GPU is slowed down by heat or its hardware", _throttled),
)
SIGNALS = {signal.name: signal for signal in _ALL}


def unreported(readings: Readings) -> list[str]:
    """Names of the signals that this server says nothing about."""
    return [name for name, signal in SIGNALS.items() if signal.source not in readings.families]


def read_all(history: History, seconds: float) -> dict[str, float | None]:
    """Every signal by name."""
    return {name: signal.read(history, seconds) for name, signal in SIGNALS.items()}
