"""How many replicas the present load needs, in words that can be checked, from the queue, K/V memory and time to first token.

Each signal is turned into a load: 1.0 is as much as one replica of this kind carries within its targets.  The largest counts, and
of the last few minutes the largest again, so that the advice rises at once and falls slowly.  Loads of several replicas add up, which
is what an autoscaler does with the metric: replicas = the sum, rounded up.  The formulas are in docs/monitoring.md.

GPU utilization takes no part.  It says that some kernel ran, and a healthy server and one that drowns both show 99%.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from glmserve.observe.readings import History, Window
from glmserve.observe.signals import SIGNALS

MOST_LOAD = (
    2.0  # of one replica: what lies beyond cannot be measured, since a server that drowns looks the same at 3 and at 10 times its load
)
TOLERANCE = 0.1  # this much above a whole number asks for no further replica
TAIL = 0.9  # time to first token is judged at the 90th percentile
LEAST_REQUESTS = 10  # in the window, before their times are judged: the first ones after a start are slow for reasons of their own
WAITING_SHARE = 0.25  # of the time to first token that must be waiting before more replicas are worth their price


@dataclass(frozen=True)
class ScaleTargets:
    """What one replica may be asked to carry.  Times are seconds."""

    ttft: float = 2.0
    waiting: int = 4
    kv_usage: float = 0.85
    window: float = 60.0
    hold: float = 300.0


@dataclass(frozen=True)
class Demand:
    """What one signal asks for.  `load` is None where it says nothing."""

    name: str
    load: float | None
    words: str


def demands(history: History, targets: ScaleTargets, max_num_seqs: int) -> list[Demand]:
    """What each signal of the last `targets.window` seconds asks for.  `max_num_seqs` is the places in the engine's batch."""
    window = history.window(targets.window)
    if window is None:
        return []
    found = [
        _batch(history, targets, max_num_seqs),
        _queue(history, targets),
        _kv(history, targets),
        _refused(window),
        _first_token(window, targets),
    ]
    return [demand for demand in found if demand is not None]


def _batch(history: History, targets: ScaleTargets, max_num_seqs: int) -> Demand | None:
    running = history.mean("num_requests_running", targets.window)
    if running is None:
        return None
    return Demand("batch", running / max_num_seqs, f"{running:.1f} requests run on average, of the {max_num_seqs} that fit into a batch")


def _queue(history: History, targets: ScaleTargets) -> Demand | None:
    """A few may wait.  Where more do, what is there is held against what would be there with only these few waiting."""
    running = history.mean("num_requests_running", targets.window)
    waiting = history.mean("num_requests_waiting", targets.window)
    if running is None or waiting is None:
        return None
    allowed = targets.waiting
    load = waiting / allowed if waiting <= allowed else (running + waiting) / (running + allowed)
    return Demand("queue", load, f"{waiting:.1f} requests wait on average beside {running:.1f} that run; {allowed} may")


def _kv(history: History, targets: ScaleTargets) -> Demand | None:
    usage = history.mean_share("kv_cache_usage_perc", targets.window)
    if usage is None:
        return None
    return Demand("kv_cache", usage / targets.kv_usage, f"K/V memory is {usage:.0%} full on average; the target is {targets.kv_usage:.0%}")


def _refused(window: Window) -> Demand | None:
    refused, ended = window.increase("requests_rejected_total"), window.increase("e2e_request_latency_seconds_count")
    if not refused:
        return None
    return Demand(
        "refused", 1.0 + refused / (ended or 1.0), f"{refused:.0f} requests were turned away while {ended or 0:.0f} were answered"
    )


def _first_token(window: Window, targets: ScaleTargets) -> Demand | None:
    """Held against its target, where a good part of it is waiting: what is none (a long prompt, a slow chip) no replica makes shorter."""
    ttft, waiting = window.quantile("time_to_first_token_seconds", TAIL), window.quantile("request_queue_time_seconds", TAIL)
    if ttft is None or waiting is None or (window.increase("time_to_first_token_seconds_count") or 0.0) < LEAST_REQUESTS:
        return None
    waiting = min(waiting, ttft)
    words = f"90% of first tokens come within {ttft:.2g} s, {waiting:.2g} s of it waiting; the target is {targets.ttft:g} s"
    if waiting < WAITING_SHARE * ttft:
        missed = "; that is not for lack of replicas: see `glmserve slow`" if ttft > targets.ttft else ""
        return Demand("ttft", None, words + missed)
    return Demand("ttft", ttft / targets.ttft, words)


class ScaleSignal:
    """The advice of one server.  `look` is called every few seconds; reading the advice changes nothing."""

    def __init__(self, targets: ScaleTargets) -> None:
        self._targets = targets
        self._loads: deque[tuple[float, float]] = deque()  # (moment, load)
        self._demands: list[Demand] = []
        self._utilization: dict[str, float | None] = {}

    def look(self, history: History, at: float, max_num_seqs: int | None) -> None:
        """Take the present into account.  `max_num_seqs` is None while no engine is ready."""
        if max_num_seqs is None:
            self._demands = [Demand("starting", 1.0, "the engine is not ready: the server counts as one until it can be judged")]
        else:
            self._demands = demands(history, self._targets, max_num_seqs)
        loads = [min(MOST_LOAD, demand.load) for demand in self._demands if demand.load is not None]
        if loads:
            self._loads.append((at, max(loads)))
        while self._loads and at - self._loads[0][0] > self._targets.hold:
            self._loads.popleft()
        self._utilization = {
            name: SIGNALS[name].read(history, self._targets.window) for name in ("gpu_busy", "nvml_utilization", "mbu", "mfu")
        }

    @property
    def load(self) -> float | None:
        """Replicas that this server's share of the load needs, not rounded; None before the second look."""
        return max((load for _, load in self._loads), default=None)

    @property
    def replicas(self) -> int:
        """The same, rounded up, at least 1."""
        return max(1, math.ceil((self.load or 0.0) - TOLERANCE))

    def advice(self) -> dict[str, Any]:
        """What GET /scale says."""
        now = self._loads[-1][1] if self._loads else None
        return {
            "replicas": self.replicas,
            "load": _rounded(self.load),
            "load_now": _rounded(now),
            "because": self._because(now),
            "reasons": {demand.name: {"load": _rounded(demand.load), "why": demand.words} for demand in self._demands},
            "targets": {
                "ttft_seconds": self._targets.ttft,
                "waiting_requests": self._targets.waiting,
                "kv_usage": self._targets.kv_usage,
                "window_seconds": self._targets.window,
                "hold_seconds": self._targets.hold,
            },
            "utilization": {name: _rounded(value) for name, value in self._utilization.items()} | {"note": self._note(now)},
        }

    def _because(self, now: float | None) -> str:
        known = [demand for demand in self._demands if demand.load is not None]
        if now is None or self.load is None or not known:
            return "there is nothing to judge by yet"
        if now < self.load - TOLERANCE:
            return f"the load was {self.load:.2f} within the last {self._targets.hold:g} s and is {now:.2f} now: it falls slowly on purpose"
        most = max(known, key=lambda demand: demand.load or 0.0)
        return f"{most.name}: {most.words}"

    def _note(self, now: float | None) -> str:
        """Why utilization beside it says nothing of the need."""
        busy = next((value for name in ("gpu_busy", "nvml_utilization") if (value := self._utilization.get(name)) is not None), None)
        plain = "utilization says that some kernel ran, not that more was asked for than can be done"
        if busy is None or now is None:
            return plain
        if busy > 0.85 and now <= 1.0 + TOLERANCE:
            return f"{busy:.0%} busy and well within the targets: batching fills the device long before it is overloaded; {plain}"
        if busy > 0.85:
            return f"{busy:.0%} busy, as it would be in a healthy server too: the queue and the waiting tell the difference; {plain}"
        if now > 1.0 + TOLERANCE:
            return f"only {busy:.0%} busy although the load is {now:.2f} replicas: what is short is not arithmetic; {plain}"
        return plain


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
