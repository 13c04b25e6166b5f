"""A server that watches itself, look by look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import pytest
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from glmserve.observe.alert_file import parse_alert_rules
from glmserve.observe.scale import ScaleSignal, ScaleTargets
from glmserve.observe.self_watch import LOOK_SECONDS, SelfWatch

RULES = """
interval: 20s
rules:
- {name: queue, signal: requests_waiting, above: 10, over: 0, for: 0}
- {name: memory, signal: nvml_memory, above: 99%}
"""


class Server:
    """What is watched."""

    def __init__(self) -> None:
        self.waiting = 0.0
        self.places: int | None = 8
        self.broken = False

    def collect(self) -> Iterable[Metric]:
        if self.broken:
            raise RuntimeError("a collector broke")
        for name, value in (("num_requests_running", 4.0), ("num_requests_waiting", self.waiting), ("kv_cache_usage_perc", 0.1)):
            yield GaugeMetricFamily("glmserve:" + name, "help", value=value)

    def watch(self, rules: str = RULES) -> SelfWatch:
        alerts = parse_alert_rules(rules, "test") if rules else None
        return SelfWatch(self.collect, lambda: self.places, ScaleSignal(ScaleTargets()), 60.0, alerts, "box:8000")


def test_alerts_are_judged_at_their_own_interval(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    watch = server.watch()
    watch.look(100.0)
    server.waiting = 50.0
    for second in (105.0, 110.0, 115.0):
        watch.look(second)
    assert "FIRING" not in caplog.text
    watch.look(120.0)
    assert "FIRING [warning] queue at box:8000: requests_waiting is 50, above 10" in caplog.text


def test_a_rule_that_cannot_fire_is_named_once_the_engine_is_there(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.places = None
    watch = server.watch()
    for second in range(0, 100, 20):
        watch.look(float(second))
    assert "idle" not in caplog.text
    server.places = 8
    for second in range(100, 200, 20):
        watch.look(float(second))
    assert caplog.text.count("alert rule 'memory' is idle: box:8000 does not report nvml_memory") == 1


def test_the_load_follows_the_queue() -> None:
    server = Server()
    watch = server.watch("")
    watch.look(0.0)
    watch.look(5.0)
    assert watch.scale.load == 0.5
    server.waiting = 100.0
    for second in range(10, 80, 5):
        watch.look(float(second))
    assert watch.scale.load == 2.0
    watch.close()


async def test_what_breaks_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    server, looks, pauses = Server(), 0, []
    watch = server.watch("")

    async def sleep(seconds: float) -> None:
        nonlocal looks
        pauses.append(seconds)
        looks += 1
        server.broken = looks == 1
        if looks == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr("glmserve.observe.self_watch.asyncio.sleep", sleep)
    clock = iter([0.0, 5.0, 10.0])
    with pytest.raises(asyncio.CancelledError):
        await watch.run(lambda: next(clock))
    assert pauses == [LOOK_SECONDS] * 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert watch.scale.load == 0.5
