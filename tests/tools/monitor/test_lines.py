"""The line for logs and cron."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import httpx
import pytest

from glmserve.protocol.errors import SettingsError
from glmserve.tools.monitor.lines import idle_words, line_of, line_writer, write_lines
from glmserve.tools.monitor.watched_server import WatchedServer
from tests.tools.monitor.scripted_metrics import Clock, MetricsServer

NOW = datetime(2026, 11, 22, 20, 41, 56)


def busy_minute(server: MetricsServer) -> None:
    """What happens in one minute."""
    server.values |= {"nvml_utilization_perc": 0.98, "nvml_memory_used_bytes": 68e9, "nvml_memory_total_bytes": 80e9}
    server.values |= {"model_bandwidth_utilization_perc": 0.61}
    server.grow(e2e_request_latency_seconds_count=1578)
    server.grow(**{'http_requests_total{path="/chat"}': 1600})
    for activity, seconds in (("decode", 48), ("prefill", 6), ("idle_no_work", 5), ("idle_scheduling", 1), ("idle_http", 0)):
        server.grow(**{f'gpu_time_seconds_total{{activity="{activity}"}}': seconds})


async def watch_for_a_minute(server: MetricsServer, clock: Clock) -> WatchedServer:
    watched = WatchedServer(server.url, clock, history_seconds=60)
    busy_minute(server)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
        busy_minute(server)
        clock.now += 60
        await watched.look(http)
    return watched


async def test_the_articles_line_and_more(server: MetricsServer, clock: Clock) -> None:
    watched = await watch_for_a_minute(server, clock)
    expected = "2026-11-22 20:41:56 | GPU: 98% | Mem: 85% | QPS: 26.3 | busy: 90% | MBU: 61% | idle: 8% no work, 2% scheduling"
    assert line_of(watched, NOW, False, 60) == expected
    assert line_of(watched, NOW, True, 60).startswith(f"2026-11-22 20:41:56 | {server.url} | GPU: 98% | ")


async def test_what_is_not_reported_is_a_dash(vllm: MetricsServer, clock: Clock) -> None:
    vllm.values = {"num_requests_running": 1, 'http_requests_total{handler="/v1/completions"}': 10}
    watched = WatchedServer(vllm.url, clock)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
        clock.now += 10
        vllm.values['http_requests_total{handler="/v1/completions"}'] = 30
        await watched.look(http)
    assert line_of(watched, NOW, False, 10) == "2026-11-22 20:41:56 | GPU: - | Mem: - | QPS: 2.0 | busy: - | MBU: - | idle: -"


async def test_a_server_that_is_away_is_a_line_too(clock: Clock) -> None:
    watched = WatchedServer("http://127.0.0.1:9", clock)
    async with httpx.AsyncClient() as http:
        await watched.look(http)
    assert line_of(watched, NOW, True, 60).startswith("2026-11-22 20:41:56 | http://127.0.0.1:9 | unreachable: ")


def test_idle_words() -> None:
    assert idle_words({"decode": 0.2, "idle_no_work": 0.1, "idle_kv_full": 0.7}) == "70% kv full, 10% no work"
    assert idle_words({"decode": 1.0, "idle_no_work": 0.001}) == "0%"
    assert idle_words({}) == "-"


async def test_lines_come_at_intervals_and_looks_between_them(server: MetricsServer, clock: Clock, tmp_path: Path) -> None:
    server.values = {"num_requests_running": 0}
    pauses: list[float] = []
    looks: list[int] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.now += seconds

    log = tmp_path / "gpu.log"
    write = line_writer(str(log))
    async with httpx.AsyncClient() as http:
        servers = [WatchedServer(server.url, clock)]
        await write_lines(servers, http, write, 60.0, 15.0, rounds=2, after_look=lambda: looks.append(1), sleep=sleep)
    assert len(log.read_text().splitlines()) == 2
    assert len(pauses) == 8 and all(pause > 10 for pause in pauses)
    assert len(looks) == 9


def test_a_log_that_is_moved_away_begins_anew(tmp_path: Path) -> None:
    write = line_writer(str(tmp_path / "gpu.log"))
    write("one")
    (tmp_path / "gpu.log").rename(tmp_path / "gpu.log.1")
    write("two")
    assert (tmp_path / "gpu.log").read_text() == "two\n"
    assert (tmp_path / "gpu.log.1").read_text() == "one\n"


def test_a_log_that_cannot_be_written_is_told_before_the_watching(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--log"):
        line_writer(str(tmp_path / "no" / "gpu.log"))
