"""How many replicas are asked for, and that utilization has no say."""

from __future__ import annotations

from typing import Any

import pytest

from glmserve.observe.readings import History, Readings
from glmserve.observe.scale import MOST_LOAD, ScaleSignal, ScaleTargets

PLACES = 100


class Scene:
    """A server that the test plays: one look every five seconds, with what happened in them."""

    def __init__(self, **targets: float) -> None:
        self.signal = ScaleSignal(ScaleTargets(**{"window": 20.0, "hold": 60.0, **targets}))  # type: ignore[arg-type]
        self.history = History(120)
        self.now = 0.0
        self.per_look = 50  # requests in five seconds
        self.totals = dict.fromkeys(("busy", "idle", "ended", "refused"), 0.0)
        self.ttft: dict[float, float] = dict.fromkeys((0.1, 1.0, 2.0, 4.0, 10.0), 0.0)
        self.queue: dict[float, float] = dict(self.ttft)

    def pass_time(
        self,
        seconds: float,
        *,
        running: float = 0.0,
        waiting: float = 0.0,
        kv: float = 0.0,
        busy: float = 0.0,
        refused: float = 0.0,
        ttft: float | None = None,
        queued: float = 0.0,
    ) -> dict[str, Any]:
        """`ttft` and `queued` are what each request of the time saw, at a bound of the histogram; ten ended a second."""
        end = self.now + seconds
        while self.now < end:
            self.now += 5
            self.totals["busy"] += 5 * busy
            self.totals["idle"] += 5 * (1 - busy)
            self.totals["refused"] += 5 * refused
            if ttft is not None:
                self.totals["ended"] += self.per_look
                self._observe(self.ttft, ttft)
                self._observe(self.queue, queued)
            self.history.add(Readings.parse(self._page(running, waiting, kv), self.now))
            self.signal.look(self.history, self.now, PLACES)
        return self.signal.advice()

    def _observe(self, buckets: dict[float, float], value: float) -> None:
        for bound in buckets:
            if value <= bound:
                buckets[bound] += self.per_look

    def _page(self, running: float, waiting: float, kv: float) -> str:
        values = {
            "num_requests_running": running,
            "num_requests_waiting": waiting,
            "kv_cache_usage_perc": kv,
            "requests_rejected_total": self.totals["refused"],
            "e2e_request_latency_seconds_count": self.totals["ended"],
            'gpu_time_seconds_total{activity="decode"}': self.totals["busy"],
            'gpu_time_seconds_total{activity="idle_no_work"}': self.totals["idle"],
        }
        for name, buckets in (("time_to_first_token_seconds", self.ttft), ("request_queue_time_seconds", self.queue)):
            values |= {f'{name}_bucket{{le="{bound}"}}': count for bound, count in buckets.items()}
            values |= {f'{name}_bucket{{le="+Inf"}}': buckets[10.0], f"{name}_count": buckets[10.0]}
        return "".join(f"glmserve:{name} {value}\n" for name, value in values.items())


def test_idle() -> None:
    advice = Scene().pass_time(60)
    assert (advice["replicas"], advice["load"]) == (1, 0)


def test_steady() -> None:
    advice = Scene().pass_time(60, running=40, waiting=1, kv=0.2, busy=0.99, ttft=0.1)
    assert advice["replicas"] == 1
    assert advice["load"] == pytest.approx(0.4)
    assert advice["reasons"]["queue"]["load"] == 0.25
    assert advice["because"] == "batch: 40.0 requests run on average, of the 100 that fit into a batch"


def test_a_queue_that_grows() -> None:
    scene = Scene()
    loads = [scene.pass_time(20, running=50, waiting=waiting)["load"] for waiting in (2, 10, 30, 60, 200)]
    assert loads == sorted(loads) and loads[0] < 1 < loads[2]
    advice = scene.signal.advice()
    assert advice["replicas"] == 2 and advice["load"] == MOST_LOAD
    assert advice["because"].startswith("queue: ")


def test_more_waiting_never_asks_for_less() -> None:
    loads = [Scene().pass_time(30, running=3, waiting=waiting / 2)["load"] for waiting in range(0, 30)]
    assert loads == sorted(loads)


def test_kv_memory_full() -> None:
    advice = Scene().pass_time(60, running=20, kv=1.0)
    assert advice["load"] == pytest.approx(1 / 0.85, abs=0.001)
    assert advice["replicas"] == 2
    assert "K/V memory is 100% full" in advice["because"]


def test_requests_turned_away() -> None:
    advice = Scene().pass_time(60, running=20, refused=5, ttft=0.1)  # ten a second are answered
    assert advice["load"] == pytest.approx(1.5)
    assert "turned away" in advice["because"]
    assert Scene().pass_time(60, refused=5)["load"] == MOST_LOAD  # and none is answered


def test_the_same_utilization_healthy_and_overloaded() -> None:
    healthy = Scene().pass_time(60, running=60, waiting=1, kv=0.5, busy=0.99, ttft=0.1)
    drowning = Scene().pass_time(60, running=60, waiting=1, kv=0.5, busy=0.99, ttft=4.0, queued=4.0)
    assert healthy["utilization"]["gpu_busy"] == drowning["utilization"]["gpu_busy"] == 0.99
    assert healthy["replicas"] == 1 and drowning["replicas"] == 2
    assert "well within the targets" in healthy["utilization"]["note"]
    assert "in a healthy server too" in drowning["utilization"]["note"]
    assert drowning["because"].startswith("ttft: 90% of first tokens come within")


def test_a_slow_first_token_that_is_not_waiting_asks_for_nothing() -> None:
    advice = Scene().pass_time(60, running=1, ttft=4.0, queued=0.1)
    assert advice["replicas"] == 1
    assert advice["reasons"]["ttft"]["load"] is None
    assert "not for lack of replicas" in advice["reasons"]["ttft"]["why"]


def test_a_handful_of_slow_requests_is_no_load() -> None:
    scene = Scene()
    scene.pass_time(5, running=1)
    scene.per_look = 4
    assert "ttft" not in scene.pass_time(10, running=1, ttft=4.0, queued=4.0)["reasons"]
    assert scene.pass_time(10, running=1, ttft=4.0, queued=4.0)["reasons"]["ttft"]["load"] == pytest.approx(2, rel=0.3)


def test_a_device_at_rest_may_be_overloaded() -> None:
    advice = Scene().pass_time(60, running=10, waiting=20, busy=0.3)
    assert advice["replicas"] == 2
    assert "only 30% busy although the load is 2.00" in advice["utilization"]["note"]


def test_it_rises_at_once_and_falls_slowly() -> None:
    scene = Scene()
    assert scene.pass_time(30, running=50)["replicas"] == 1
    assert scene.pass_time(20, running=50, waiting=60)["replicas"] == 2
    falling = scene.pass_time(40, running=50)
    assert falling["replicas"] == 2 and falling["load_now"] < 1 and "falls slowly" in falling["because"]
    assert scene.pass_time(60, running=50)["replicas"] == 1


def test_it_does_not_swing_with_a_swinging_queue() -> None:
    scene = Scene()
    scene.pass_time(60, running=50, waiting=30)
    advised = {scene.pass_time(5, running=50, waiting=waiting)["replicas"] for waiting in (0, 60) * 20}
    assert advised == {2}


def test_while_the_engine_starts_the_server_counts_as_one() -> None:
    signal = ScaleSignal(ScaleTargets())
    assert signal.load is None and signal.advice()["replicas"] == 1
    signal.look(History(60), 0.0, None)
    assert signal.load == 1.0 and "not ready" in signal.advice()["because"]
